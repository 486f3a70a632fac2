"""The firewall rules that a network must have, one module per way in which libvirt writes them."""
