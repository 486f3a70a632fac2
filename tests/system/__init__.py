"""Whole hosts: systemd as PID 1, the built package installed, reboots and power cuts."""
