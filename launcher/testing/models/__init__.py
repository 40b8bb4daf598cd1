"""Conformance: whether an engine after an update is the same as an engine started from those weights."""
