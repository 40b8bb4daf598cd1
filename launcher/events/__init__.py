"""The event log of a run: its records, how they are written and read, and the state that they add up to."""
