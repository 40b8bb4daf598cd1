"""One ``python -m launcher`` as a person would start it, with what it printed and what it left in its run directory."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from tests.integration.jobs.logged import read_events, select
from tests.unit.processes import Mark

ROOT = Path(__file__).parents[3]


def run_dir_of(output: str) -> Path:
    """The run directory that a launcher printed."""
    found = re.search(r"^run directory (\S+)$", output, re.MULTILINE)
    assert found is not None, output
    return Path(found.group(1))


class Launcher(Protocol):
    """The fixture ``launcher``."""

    def __call__(self, *overrides: str, **env: str) -> Launched:
        """Starts one."""


class Launched:
    """A launcher that runs, or has run, as a process of its own session (a terminal of its own, to the kernel)."""

    def __init__(self, overrides: Sequence[str], folder: Path, mark: Mark, env: Mapping[str, str]) -> None:
        self.mark = mark
        self._output = folder / f"output-{len(list(folder.glob('output-*')))}.txt"
        with self._output.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "launcher", *overrides],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env={**os.environ, **mark.env, "CUDA_VISIBLE_DEVICES": "", **env},
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        """What it printed so far."""
        return self._output.read_text()

    @property
    def run_dir(self) -> Path:
        """Its run directory."""
        return run_dir_of(self.output)

    @property
    def events(self) -> list[dict[str, Any]]:
        """The events of its first attempt so far."""
        return read_events(self.run_dir / "attempts" / "1")

    def event(self, event: str, **fields: Any) -> dict[str, Any] | None:
        """The first event of this name with these fields; None if there is none yet."""
        return next(iter(select(self.events, event, **fields)), None)

    def wait_event(self, event: str, *, timeout_s: float = 60, **fields: Any) -> dict[str, Any]:
        """Waits for :meth:`event`.

        Raises:
            AssertionError: it has not come after ``timeout_s``, or the launcher has ended without it.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            is_over = self.process.poll() is not None or time.monotonic() > deadline
            if "run directory" in self.output and (found := self.event(event, **fields)) is not None:
                return found
            assert not is_over, f"no {event} with {fields}:\n{self.output}"
            time.sleep(0.02)

    def wait_process(self, name: str, timeout_s: float = 60) -> int:
        """Process id of a worker, once it has started."""
        return int(self.wait_event("process", name=name, state="started", timeout_s=timeout_s)["pid"])

    def agent(self, node_rank: int) -> int:
        """Process id of a node's agent; its workers are there."""
        (found,) = [
            process.pid
            for process in self.mark.left()
            if "launcher.node " in process.command
            and str(self.run_dir) in process.command
            and process.environment["LAUNCHER_LOCAL_NODE_RANK"] == str(node_rank)
        ]
        return found

    def shim(self, node_rank: int) -> int:
        """Process id of a node's shim."""
        return int(Path(f"/proc/{self.agent(node_rank)}/stat").read_text().rpartition(")")[2].split()[1])

    def wait(self, timeout_s: float) -> int:
        """Its exit code.

        Raises:
            AssertionError: it has not ended after ``timeout_s``.
        """
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGTERM)
            raise AssertionError(f"still running after {timeout_s} s:\n{self.output}") from None

    @property
    def cause(self) -> str:
        """What it names as the cause, in the block at its end."""
        found = re.search(r"^Cause: (.*)$", self.output, re.MULTILINE)
        assert found is not None, self.output
        return found.group(1)
