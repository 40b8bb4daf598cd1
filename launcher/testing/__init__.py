"""Tools to test, measure and break the launcher with."""
