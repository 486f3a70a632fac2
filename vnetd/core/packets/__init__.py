"""What the host's firewall, all tables of all tools together, does with a packet."""
