"""What was queued is what runs: the code and the environment of a run, kept at its submission."""
