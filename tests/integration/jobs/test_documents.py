"""Every command of the documents, as it stands there, on a real SLURM, in an order that makes sense."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.integration.jobs.launched import ROOT, run_dir_of
from tests.slurm_cluster.cluster import SlurmCluster
from tests.slurm_cluster.spec import Partition
from tests.unit.documents import commands, files

DEADLINE_S = 600

TINY = "python -m launcher +cluster=slurm cluster.partition=gpu"
LARGE = (
    "python -m launcher +cluster=slurm experiment=qwen3_8b model.path=/models/Qwen3-8B"
    " layout.nodes=4 layout.inference_nodes=2"
)
SWEEP = "python -m launcher -m +cluster=slurm trainer.lr=1e-4,3e-4,1e-3 layout.nodes=2,3"
RENDER = "launcher render +cluster=slurm cluster.partition=gpu experiment=qwen3_8b -o job.sbatch"
LOGS = "launcher logs RUN --role trainer --rank 0 -f"
PAGE = "launcher ui RUN"
OWN_TRAINER = "python -m launcher trainer.command=[python,my_trainer.py]"
OWN_TASK = "python -m launcher +cluster=slurm cluster.partition=gpu trainer.task=my_tasks:Larger"
OWN_TEMPLATE = "launcher render +cluster=slurm cluster.partition=gpu cluster.template=site.sbatch.j2 -o site.sbatch"
COMPLETION = 'eval "$(launcher completion bash)"'

SAYS = {
    TINY: r"submitted job \d+\n(.*\n)*next:\n  launcher status",
    LARGE: r"submitted job \d+\n",
    "launcher plan experiment=qwen3_8b layout.nodes=4 layout.inference_nodes=2": r"16 trainer ranks, 16 engines",
    "launcher plan [overrides]": r"2 nodes with 4 CPU slots each",
    "launcher inspect trainer-3 [overrides]": r"trainer-0003\n +runs ",
    "launcher runs": r"tiny-\S+ +(starting|running) ",
    "launcher status RUN": r"job +\d+: RUNNING",
    LOGS: r"tiny-\S+: cancelled",
    PAGE: r"http://localhost:\d+/",
    "launcher attach RUN --node 1 -- nvidia-smi": r"\Agpu-02\n\Z",
    "launcher cancel RUN ...": r"was (starting|running); ended job \d+: CANCELLED",
    "launcher why RUN": r"cancelled",
    "launcher nodes": r"no node is remembered as bad",
    "launcher models [NAME ...]": r"mixtral +1 +float32",
    "launcher resume RUN": r"submitted job \d+",
    "launcher resume last": r"submitted job \d+",
    "launcher replay RUN [overrides]": r"submitted job \d+",
    "launcher replay last trainer.seed=1": r"submitted job \d+",
    "launcher render +cluster=slurm [overrides]": r"(?s)#!/usr/bin/env bash\n.*\bsrun ",
    RENDER: r"wrote job\.sbatch",
    "sbatch job.sbatch": r"Submitted batch job \d+",
    SWEEP: r"6 runs: 6 submitted",
    "launcher sweep status DIR": r"6 runs",
    "launcher sweep results DIR": r"results\.csv",
    "launcher sweep cancel DIR": r"6 runs: 6 cancelled",
    COMPLETION: r"\A\Z",
    OWN_TRAINER: r"Completed after .*3 of 3 steps",
    OWN_TASK: r"submitted job \d+",
    OWN_TEMPLATE: r"wrote site\.sbatch",
}
"""What each example prints, as a regular expression."""


def substitutions(model: Path, run: str, sweep: str) -> dict[str, str]:
    """What a reader must put in the place of something else; nothing else is changed."""
    return {
        "/models/Qwen3-8B": str(model),
        "[overrides]": "layout.gpus_per_node=4",
        "RUN ...": run,
        "RUN": run,
        "DIR": sweep,
        "[NAME ...]": "mixtral",
        "nvidia-smi": "hostname",  # there is no GPU
    }


def test_every_example_is_known() -> None:
    shown = {*commands()}
    assert shown - SAYS.keys() == set(), "nobody executes these: add them to SAYS, and to the test below"
    assert SAYS.keys() - shown == set(), "in no document any more"


class Reader:
    """Somebody on the login node who gives the commands, in a folder that has the files of the documents."""

    def __init__(self, cluster: SlurmCluster, folder: Path, model: Path) -> None:
        self.cluster, self.folder, self._model = cluster, folder, model
        self.run_dir = self.sweep_dir = ""
        self.given: set[str] = set()
        for name, text in files().items():
            (folder / name).write_text(text, encoding="utf-8")

    def give(self, example: str, *, code: int = 0) -> str:
        """Executes an example; what it printed."""
        with self.begin(example) as process:
            output, _ = process.communicate(timeout=DEADLINE_S)
        return self.check(example, process, output, code)

    @contextlib.contextmanager
    def begin(self, example: str) -> Iterator[subprocess.Popen[str]]:
        """Starts an example; it is killed if it is still there at the end of the block."""
        self.given.add(example)
        command = example
        for word, value in substitutions(self._model, self.run_dir, self.sweep_dir).items():
            command = re.sub(rf"(?<!\w){re.escape(word)}(?!\w)", value, command)
        process = subprocess.Popen(
            [*self.cluster.login, "env", "--chdir", str(self.folder), "bash", "-c", command],
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()

    def check(self, example: str, process: subprocess.Popen[str], output: str, code: int = 0) -> str:
        """Whether an example that has ended printed what it must."""
        assert process.returncode == code, f"`{example}` ended with {process.returncode}:\n{output}"
        assert re.search(SAYS[example], output), f"`{example}` printed:\n{output}"
        return output

    @property
    def env(self) -> Mapping[str, str]:
        """``launcher`` and ``python`` are those of this test; what is remembered of nodes is nobody else's."""
        path = f"{Path(sys.executable).parent}:{self.cluster.env['PATH']}"
        cache = str(self.folder / "cache")
        return {**self.cluster.env, "PATH": path, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": cache, "TERM": "dumb"}

    def end_all(self) -> None:
        """Ends every job; what one may have found out meanwhile, that no node has a GPU, is forgotten."""
        self.cluster.cancel_all(timeout_s=60)
        shutil.rmtree(self.folder / "cache", ignore_errors=True)

    def wait_log(self, name: str) -> None:
        """Waits until a process of the run has started."""
        deadline = time.monotonic() + DEADLINE_S
        while not list((self.folder / self.run_dir).glob(f"attempts/1/logs/{name}.log")):
            assert time.monotonic() < deadline, f"no {name} after {DEADLINE_S} s"
            time.sleep(0.1)


@pytest.fixture
def long_model(model: Path, tmp_path: Path) -> Path:
    """A model of as many positions as the examples ask for."""
    path = tmp_path / "long-model"
    shutil.copytree(model, path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 4096}))
    return path


@pytest.fixture(scope="module")
def gpus() -> Iterator[SlurmCluster]:
    """The cluster of the README."""
    with SlurmCluster("gpu-[01-04]", partitions=(Partition(name="gpu"),)) as cluster:
        yield cluster


@pytest.mark.timeout(2400)
@pytest.mark.slurm
@pytest.mark.engine
def test_every_example_does_what_it_says(gpus: SlurmCluster, tmp_path: Path, long_model: Path) -> None:
    reader = Reader(gpus, tmp_path, long_model)
    reader.run_dir = str(run_dir_of(reader.give(TINY)))
    reader.give("launcher plan experiment=qwen3_8b layout.nodes=4 layout.inference_nodes=2")
    reader.give("launcher plan [overrides]")
    reader.give("launcher inspect trainer-3 [overrides]")
    reader.give("launcher render +cluster=slurm [overrides]")
    reader.give(COMPLETION)
    look_at_a_run(reader)
    start_it_again(reader)
    reader.give(LARGE)
    reader.end_all()
    reader.give(RENDER)
    reader.give("sbatch job.sbatch")
    reader.end_all()
    extend(reader)
    reader.sweep_dir = reader.give(SWEEP).partition("sweep directory ")[2].split()[0]
    reader.give("launcher sweep status DIR")
    reader.give("launcher sweep results DIR")
    reader.give("launcher sweep cancel DIR")
    gpus.wait_empty()
    assert reader.given == SAYS.keys()


def look_at_a_run(reader: Reader) -> None:
    """Every command about a run that goes on; afterwards it has been cancelled."""
    reader.wait_log("trainer-0000")
    with reader.begin(LOGS) as follower:
        reader.give("launcher runs")
        reader.give("launcher status RUN")
        reader.give("launcher attach RUN --node 1 -- nvidia-smi")
        reader.give("launcher nodes")
        reader.give("launcher models [NAME ...]")
        with reader.begin(PAGE) as page:
            assert page.stdout is not None
            line = page.stdout.readline()
            with urllib.request.urlopen(re.search(SAYS[PAGE], line)[0], timeout=DEADLINE_S) as answer:  # type: ignore[index]
                assert b"<html" in answer.read()
            page.send_signal(signal.SIGINT)
            reader.check(PAGE, page, line + page.communicate(timeout=DEADLINE_S)[0])
        reader.give("launcher cancel RUN ...")
        reader.check(LOGS, follower, follower.communicate(timeout=DEADLINE_S)[0])
    reader.give("launcher why RUN")


def start_it_again(reader: Reader) -> None:
    """Every way to go on with a run, or to repeat one; each is cancelled at once."""
    for example in (
        "launcher resume RUN",
        "launcher resume last",
        "launcher replay RUN [overrides]",
        "launcher replay last trainer.seed=1",
    ):
        reader.give(example)
        reader.end_all()


def extend(reader: Reader) -> None:
    """The programs of the reader's own: a trainer, a task, a template."""
    reader.give(OWN_TRAINER)
    reader.give(OWN_TEMPLATE)
    script = (reader.folder / "site.sbatch").read_text(encoding="utf-8")
    assert "ulimit -l unlimited" in script and "srun" in script
    reader.give(OWN_TASK)
    reader.end_all()
