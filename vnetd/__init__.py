"""Keeps libvirt's virtual networks alive."""

__version__ = "0.1.0"
