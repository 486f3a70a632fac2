"""A hypervisor in a box: namespaces in which libvirt, a bus, guests and vnetd run for real."""
