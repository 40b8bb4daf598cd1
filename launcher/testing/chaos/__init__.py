"""A fault matrix: kills, stops and cancels parts of real runs at chosen moments, and says what followed."""
