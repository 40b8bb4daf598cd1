"""Hydra's side of a sweep: a sweeper that pairs settings, and a launcher that sees all runs before it starts any.

Hydra takes plugins from its own namespace only, which `launcher.sweep.candidates` makes this folder a part of.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from launcher.config.overrides import as_meant
from launcher.config.renamed import current_name
from launcher.submit.composing import hydra_full_error
from launcher.sweep.candidates import Combination, SweepRequest, combinations, compose_all, key_of, swept_keys

_GRID_TARGETS = ("hydra_plugins.launcher_sweep.GridSweeper", f"{BasicSweeper.__module__}.BasicSweeper")


class GridSweeper(BasicSweeper):
    """Every combination of the values, except for settings that ``sweep.zip`` pairs; leaves no files of its own."""

    def sweep(self, arguments: list[str]) -> Any:
        """Launches all runs as one batch."""
        assert self.hydra_context is not None and self.config is not None and self.launcher is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        overrides = parser.parse_overrides([*as_meant(self._parse_config()), *arguments])
        return self.launcher.launch(combinations(overrides, self.config.sweep.zip), initial_job_idx=0)


class RunLauncher(Launcher):
    """Starts those runs of a batch that are missing, and returns the result of each."""

    def __init__(self) -> None:
        self._config: DictConfig
        self._context: HydraContext
        self._task: Any

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by the sweeper, once."""
        self._config, self._context = config, hydra_context
        self._task = task_function

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """One batch: all of a grid, or as many as an optimising sweeper wants at once."""
        from launcher.sweep.launch import launch

        batch = self._compose(job_overrides, initial_job_idx)
        request = SweepRequest(
            directory=Path(self._config.hydra.sweep.dir).absolute(), is_optimising=self._is_optimising()
        )
        with hydra_full_error(self._task.full_errors):
            outcomes = launch(request, batch)
        self._task.codes.extend(outcome.code for outcome in outcomes)
        return [
            JobReturn(
                overrides=list(overrides),
                status=JobStatus.COMPLETED if outcome.error is None else JobStatus.FAILED,
                _return_value=outcome.value if outcome.error is None else outcome.error,
            )
            for overrides, outcome in zip(job_overrides, outcomes, strict=True)
        ]

    def _is_optimising(self) -> bool:
        return self._config.hydra.sweeper._target_ not in _GRID_TARGETS

    def _compose(self, job_overrides: Sequence[Sequence[str]], first: int) -> list[Combination]:
        swept = self._swept()

        def composed(number: int) -> DictConfig:
            words = list(job_overrides[number])
            config = self._context.config_loader.load_sweep_config(self._config, words)
            OmegaConf.set_struct(config, False)
            config.hydra.job.num = first + number
            config.hydra.job.id = str(first + number)
            OmegaConf.set_struct(config, True)
            return config

        # Of a setting that is given twice the last value counts.
        shown = [{key_of(word): word for word in words if key_of(word) in swept} for words in job_overrides]
        return compose_all(composed, [tuple(words.values()) for words in shown], swept)

    def _swept(self) -> frozenset[str]:
        parameters = self._config.hydra.sweeper.get("params") or {}
        words = OverridesParser.create().parse_overrides(list(self._config.hydra.overrides.task))
        return swept_keys(words) | {current_name(key_of(str(key))) for key in parameters}
