"""D-Bus itself: one connection, and its messages as bytes. What is said on it is in api/."""
