"""What one node's agent knows about its run, in one value."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from launcher.common.env import LAUNCHER_SCRATCH
from launcher.common.run_dir import attempt_dir, model_path
from launcher.config.schema import Config
from launcher.layout import Layout, Node


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeContext:
    """One node of one attempt."""

    config: Config
    layout: Layout
    node_rank: int
    """Index of this node in the nodelist; which slot of the layout it holds follows from its assignment."""

    hostname: str
    run_dir: Path
    attempt: int
    address: str
    """This node's address, as its peers reach it."""

    control: str
    """``host:port`` of the control service."""

    token: str
    shim: int
    """Process id of this node's shim."""

    @property
    def node(self) -> Node:
        """This node as it was planned; a spare has no processes, whatever place it takes later."""
        return self.layout.everybody[self.node_rank]

    @property
    def stop_file(self) -> Path:
        """Exists once the run was requested to stop; the trainers of this node poll for it."""
        return Path(os.environ[LAUNCHER_SCRATCH]) / "stop"

    @property
    def attempt_dir(self) -> Path:
        """Where this attempt keeps its files."""
        return attempt_dir(self.run_dir, self.attempt)

    @property
    def log_dir(self) -> Path:
        """Where the logs of this attempt are."""
        return self.attempt_dir / "logs"

    @property
    def model_path(self) -> Path:
        """Directory of the model that is trained and served."""
        return model_path(self.config.model.path, self.run_dir)
