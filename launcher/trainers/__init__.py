"""Trainers that come with the launcher; any torchrun program can take their place."""
