"""What makes a configuration wrong: one module per subject, each with ``problems(config)``."""
