"""The reference trainer: group-relative policy optimisation of a causal language model on a verifiable task."""
