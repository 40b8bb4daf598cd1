"""An engine worker's end of the bridge; knows no particular engine."""
