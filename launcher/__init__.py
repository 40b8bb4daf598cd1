"""One SLURM job with two roles: the first nodes train, the last nodes run vLLM, a bridge carries the weights."""

__version__ = "0.1.0"
