"""Firewalls: libvirt's rules (firewall), the whole host's (filters), vnetd's own (guard), and what
they are read and written by.
"""
