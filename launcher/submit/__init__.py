"""Where nodes come from: this machine, or SLURM."""
