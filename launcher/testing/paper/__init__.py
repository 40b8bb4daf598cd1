"""Models on paper: the traffic and time of a plan without a cluster."""
