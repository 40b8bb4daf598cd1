"""submitit's SLURM executor with a job script of our own, and what it runs on each node."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path

import submitit

from launcher.submit.job_script import JobScript
from launcher.submit.templates import render


@dataclass(frozen=True)
class AgentTask:
    """What submitit pickles and calls once per node: the guard of that node's agent."""

    run_dir: Path

    def __call__(self) -> None:
        """Runs this node's part of the run.

        Raises:
            SystemExit: it did not end well, which makes the task fail.
        """
        from launcher.node.signal_buffer import EarlySignals

        early = EarlySignals()
        from launcher.node.shim import guard_node

        code = guard_node(self.run_dir, early)
        if code != 0:
            # Not an error that submitit would catch and turn into exit code 1: node 0's code is the run's.
            sys.exit(code)


class TemplateExecutor(submitit.SlurmExecutor):  # type: ignore[misc]
    """Submits the script that a template gives; submitit's own command is what its ``srun`` runs.

    Args:
        folder: where submitit keeps what it pickles.
        script: the job; its command is replaced.
        template: a Jinja file.
        python: shell text of the interpreter on the nodes.
    """

    def __init__(self, folder: Path, script: JobScript, template: Path, python: str) -> None:
        super().__init__(folder=folder, python=python)
        self._script = script
        self._template = template

    def _make_submission_file_text(self, command: str, uid: str) -> str:
        return render(dataclasses.replace(self._script, command=command), self._template)

    def _num_tasks(self) -> int:
        return self._script.nodes
