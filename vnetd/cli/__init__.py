"""vnetctl: talks to the daemon over the bus, and to the core for what needs no daemon."""
