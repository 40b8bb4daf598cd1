"""submitit's SLURM executor with a job script of our own, and the task that it runs on each node."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path

import submitit

from launcher.slurm.jobs import JobId, read_job_id
from launcher.submit.job_script import JobScript, render


@dataclass(frozen=True)
class AgentTask:
    """What submitit pickles and calls once per node: the shim that starts that node's agent."""

    run_dir: Path

    def __call__(self) -> None:
        """Runs this node's part of the run.

        Raises:
            SystemExit: it did not end well, which makes the task fail.
        """
        from launcher.node.signals import SignalBuffer

        buffer = SignalBuffer()
        from launcher.node.shim import run_shim

        code = run_shim(self.run_dir, buffer)
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
        self.job_id: JobId | None = None
        """The job, once ``sbatch`` has queued it."""

    def _make_submission_file_text(self, command: str, uid: str) -> str:
        return render(dataclasses.replace(self._script, command=command), self._template)

    def _make_submission_command(self, submission_file_path: Path) -> list[str]:
        return ["sbatch", "--parsable", str(submission_file_path)]

    def _get_job_id_from_submission_command(self, string: bytes | str) -> str:
        # submitit takes the first number behind the word "job", which may be in what a site's `sbatch` prints before.
        output = string if isinstance(string, str) else string.decode(errors="replace")
        self.job_id = read_job_id(output, keep_cluster=self._script.cluster is not None)
        # Files are named after what the job itself calls its id.
        return self.job_id.number

    def _num_tasks(self) -> int:
        return self._script.nodes
