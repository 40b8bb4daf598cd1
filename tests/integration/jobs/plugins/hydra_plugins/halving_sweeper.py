"""The smallest optimising sweeper: tries two values at once, then one between the better of them and the middle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

LOW, HIGH = 0.1, 0.9


class HalvingSweeper(Sweeper):
    """Uses a launcher as Optuna's, Ax's and Nevergrad's sweepers do."""

    def __init__(self, output: str, params: Any) -> None:
        self._output = Path(output)
        self._name = next(iter(params))

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra."""
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Writes each trial's value, or the error that took its place."""
        first = self._launch([LOW, HIGH], arguments, 0)
        better = max(zip(first, (LOW, HIGH), strict=True))[1]
        second = self._launch([(better + (LOW + HIGH) / 2) / 2, -1.0], arguments, 2)
        self._output.write_text(json.dumps([*first, *second]))

    def _launch(self, values: list[float], arguments: list[str], number: int) -> list[Any]:
        assert self.launcher is not None
        batch = [[*arguments, f"{self._name}={value}"] for value in values]
        return [_outcome(done) for done in self.launcher.launch(batch, initial_job_idx=number)]


def _outcome(done: JobReturn) -> Any:
    if done.status is JobStatus.COMPLETED:
        return done.return_value
    try:
        return done.return_value
    except Exception as error:
        return str(error)


ConfigStore.instance().store(
    group="hydra/sweeper",
    name="halving",
    node={
        "_target_": "hydra_plugins.halving_sweeper.HalvingSweeper",
        "output": "???",
        "params": {"trainer.options.lr": "a number"},
    },
)
