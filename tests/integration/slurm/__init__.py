"""A real multi-node SLURM on this machine, for tests and for trying things by hand."""
