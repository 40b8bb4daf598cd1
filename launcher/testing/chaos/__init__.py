"""Fault injection: kills, stops and cancels parts of real runs at chosen moments, and records what followed."""
