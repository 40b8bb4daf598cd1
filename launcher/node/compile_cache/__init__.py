"""Compile caches: on the node's own disk while a run uses them, kept between runs on the shared filesystem."""
