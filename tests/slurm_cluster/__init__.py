"""A real multi-node SLURM on this machine, for tests and for the fault matrix."""
