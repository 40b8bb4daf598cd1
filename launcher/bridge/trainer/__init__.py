"""The trainer's end of the bridge."""
