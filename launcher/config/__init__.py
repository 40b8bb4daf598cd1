"""The configuration of a run: its schema, its composition and its validation."""

from __future__ import annotations

from launcher.config.compose import CONFIG_FILE, compose, from_yaml, load_run_config, register_configs, to_yaml, typed
from launcher.config.schema import (
    CheckpointConfig,
    ClusterConfig,
    Config,
    InferenceConfig,
    LayoutConfig,
    LocalClusterConfig,
    ModelConfig,
    SlurmClusterConfig,
    TrainerConfig,
    WeightBridgeConfig,
)

__all__ = [
    "CONFIG_FILE",
    "CheckpointConfig",
    "ClusterConfig",
    "Config",
    "InferenceConfig",
    "LayoutConfig",
    "LocalClusterConfig",
    "ModelConfig",
    "SlurmClusterConfig",
    "TrainerConfig",
    "WeightBridgeConfig",
    "compose",
    "from_yaml",
    "load_run_config",
    "register_configs",
    "to_yaml",
    "typed",
]
