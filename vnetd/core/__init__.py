"""What vnetd knows and decides. Pure: values in, values out; no I/O, no event loop, no clock."""
