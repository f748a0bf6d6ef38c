"""Which directories a run needed: traced system call by system call, or heard from a heat source."""
