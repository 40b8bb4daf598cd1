"""SLURM itself: what it says of jobs and nodes, and what its signals mean."""
