"""What a person sees of a run: all of it read from the run directory, with pictures and a summary written there."""
