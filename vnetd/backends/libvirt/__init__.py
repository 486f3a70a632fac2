"""libvirt: its networks and domains, asked and changed by its own library."""
