"""Published: vnetd on the system bus."""
