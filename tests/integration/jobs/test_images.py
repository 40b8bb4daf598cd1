"""Runs whose nodes are inside an image without any of SLURM's commands, on a real SLURM."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.jobs.followed import START_S, Run, saving_program
from tests.slurm_cluster.cluster import SlurmCluster
from tests.slurm_cluster.spec import find_program, missing_requirements

pytestmark = [pytest.mark.slurm, pytest.mark.engine]

STEPS = 40
COMMANDS = ("scontrol", "squeue", "scancel", "sbatch", "sacct", "sinfo", "srun")
ENTER = """#!/bin/bash
# Runs a command where none of SLURM's commands is, as in any image.
exec unshare --mount bash -c '
    for path in {paths}; do mount --bind {missing} "$path"; done
    exec "$@"' enter "$@"
"""
SRUN = """#!/bin/bash
# As with pyxis: srun itself starts each task inside the image that it is given.
options=() enter=()
while [[ $1 == -* ]]; do
    case $1 in --container-*) enter=({enter}) ;; *) options+=("$1") ;; esac
    shift
done
exec {srun} "${{options[@]}}" "${{enter[@]}}" "$@"
"""
APPTAINER = """#!/bin/bash
# apptainer exec [--nv] --bind MOUNTS IMAGE COMMAND ...
[[ $1 == exec && $2 == --bind ]] || exit 99
shift 4
exec {enter} "$@"
"""


def image(folder: Path, runtime: str) -> tuple[str, ...]:
    """The settings of a site whose nodes run inside an image."""
    return (
        image_commands(folder, runtime),
        "cluster.container=/images/rl.sqsh",
        f"cluster.container_runtime={runtime}",
        f"cluster.python={sys.executable}",
    )


def image_commands(folder: Path, runtime: str) -> str:
    """``cluster.setup`` of a site with an image runtime; inside of an image SLURM's commands end with 127."""
    folder.mkdir()
    missing, enter = folder / "missing", folder / "enter"
    # Not the login node's, which may be wrappers.
    paths = {name: str(find_program(name)) for name in COMMANDS}
    scripts = {
        missing: '#!/bin/bash\necho "command not found" >&2\nexit 127\n',
        enter: ENTER.format(paths=shlex.join(paths.values()), missing=missing),
    }
    if runtime == "pyxis":
        scripts[folder / "srun"] = SRUN.format(enter=enter, srun=paths["srun"])
    else:
        scripts[folder / "apptainer"] = APPTAINER.format(enter=enter)
    for path, text in scripts.items():
        path.write_text(text)
        path.chmod(0o755)
    return f"cluster.setup=['export PATH={folder}:$PATH']"


@pytest.mark.parametrize("runtime", ["pyxis", "apptainer"])
def test_the_job_script_requeues_for_nodes_that_cannot(
    slurm: SlurmCluster, tmp_path: Path, model: Path, runtime: str
) -> None:
    run = Run(
        slurm,
        tmp_path,
        *image(tmp_path / "site", runtime),
        f"model.path={model}",
        "layout.nodes=3",
        "checkpoint.every_steps=5",
        saving_program(STEPS),
    )
    try:
        run.wait_steps(1, 7)
        (checked,) = run.find(1, "preflight", node_rank=0)
        texts = {check["name"]: check["text"] for check in checked["checks"]}
        assert "through the job script" in texts["slurm"]
        slurm.run(["scancel", "--signal=USR2", run.job_id])
        run.wait(lambda: bool(run.find(1, "finished")), "end")
        assert run.find(1, "finished")[0]["outcome"] == "requeued"
        assert run.end(1) == "stopped"
        # A preemption, which SLURM's own record explains: the script looks it up.
        run.wait_steps(2, 3)
        slurm.run(["sbatch", "--partition=urgent", "--nodes=4", "--exclusive", "--wrap=sleep 1", "--output=/dev/null"])
        run.wait_steps(3, 3)
        assert run.end(2) == "preempted"
        assert run.launcher.wait(2 * START_S) == 0, run.output + run.logs()
    finally:
        run.launcher.kill()
        run.launcher.wait()
        slurm.cancel_all()
    assert json.loads((run.path / "result.json").read_text())["attempt"] == "3"
    assert run.find(3, "finished")[0]["outcome"] == run.end(3) == "completed"
    assert not list((run.path / "attempts" / "3" / "slurm").iterdir())
    slurm.wait_empty()


@pytest.fixture
def quick() -> Iterator[SlurmCluster]:
    """Takes a node for lost within seconds, and has one more than the run."""
    cluster = SlurmCluster("node[0-2]", isolation="net", slurmd_timeout_s=5, message_timeout_s=5)
    if not os.environ.get("CI") and (missing := missing_requirements(cluster.spec)):
        pytest.skip("; ".join(missing))
    with cluster:
        yield cluster
        cluster.cancel_all()


def test_another_node_requeues_the_job_whose_first_node_is_lost(
    quick: SlurmCluster, tmp_path: Path, model: Path
) -> None:
    """And with it the job script: the program that does it runs on the other nodes, outside of their image."""
    site = image(tmp_path / "site", "pyxis")
    run = Run(quick, tmp_path, *site, f"model.path={model}", 'trainer.command=[sleep,"600"]')
    try:
        run.wait(lambda: bool(run.find(1, "process", role="inference", state="started")), "engine")
        lost = str(run.find(1, "node_up", node_rank=0)[0]["hostname"])
        quick.cut(lost)  # first: the end of some of its processes is no news to anybody
        quick.crash_node(lost)
        run.wait(lambda: bool(run.find(2, "process", role="inference", state="started")), "second attempt", 2 * START_S)
        assert run.find(2, "node_up", node_rank=0)[0]["hostname"] != lost
        assert run.find(1, "finished")[0]["outcome"] == "requeued"
        assert run.end(1) == "lost"
    finally:
        run.launcher.kill()
        run.launcher.wait()
        quick.cancel_all()
