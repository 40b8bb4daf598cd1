"""SLURM itself: its programs, the states of jobs and nodes, the causes of signals."""
