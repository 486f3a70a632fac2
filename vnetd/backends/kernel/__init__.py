"""The kernel's links, routes and sysctls, over rtnetlink and /proc/sys."""
