"""The run's control service: who is there, what phase the run is in, where things listen."""
