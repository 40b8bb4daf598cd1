"""The inference role: vLLM as it is, on a port that is held, behind the run's keys, joined to the bridge."""
