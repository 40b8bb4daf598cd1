"""Checks of every node and of the network between them before anything is started: in parallel, in about a second."""
