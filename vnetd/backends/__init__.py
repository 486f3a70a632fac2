"""Effects: one file for each system that vnetd reads, changes or watches, its codec beside it."""
