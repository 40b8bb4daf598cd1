"""The run's control service: keeps the state of an attempt, and decides what each node runs."""
