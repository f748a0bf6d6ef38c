"""How entries get shadowed, and how a directory is marked."""
