"""Looks at every node, and at what lies between them, before anything is started: in parallel, in about a second."""
