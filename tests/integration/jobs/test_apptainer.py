"""A run whose nodes are inside an image of a real apptainer, on a real SLURM."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.integration.jobs.followed import START_S, Run, saving_program
from tests.integration.jobs.test_images import COMMANDS
from tests.slurm_cluster.cluster import SlurmCluster

pytestmark = [pytest.mark.slurm, pytest.mark.engine]

STEPS = 40


def make_image(folder: Path) -> None:
    """A sandbox image with this machine's programs, and none of SLURM's; libraries are to be mounted."""
    programs = folder / "usr" / "bin"
    programs.mkdir(parents=True)
    for path in Path("/usr/bin").iterdir():
        if path.name not in COMMANDS and path.is_file():
            try:
                os.link(path.resolve(), programs / path.name)
            except OSError:  # another filesystem
                shutil.copy2(path, programs / path.name)
    for name in ("bin", "lib", "lib64"):
        (folder / name).symlink_to(f"usr/{name}")
    for name in ("usr/lib", "usr/lib64", "etc", "proc", "sys", "dev", "tmp", "root", "home", "var/tmp"):
        (folder / name).mkdir(parents=True)
    for name in ("passwd", "group"):  # apptainer adds the user
        (folder / "etc" / name).touch()


def test_a_run_in_an_apptainer_image_is_requeued_and_completes(
    slurm: SlurmCluster, tmp_path: Path, model: Path
) -> None:
    program = shutil.which("apptainer")
    if program is None:
        pytest.skip("no program 'apptainer'; tests/README.md shows how to get it where the distribution has none")
    image = tmp_path / "image"
    make_image(image)
    # As for any user: without privileges.
    setup = [f"export PATH={Path(program).parent}:$PATH", "export APPTAINER_USERNS=1"]
    run = Run(
        slurm,
        tmp_path,
        f"cluster.setup={json.dumps(setup)}",
        f"cluster.container={image}",
        "cluster.container_runtime=apptainer",
        f'cluster.container_mounts="/usr/lib:/usr/lib,/usr/lib64:/usr/lib64,{sys.base_prefix}:{sys.base_prefix}"',
        f"cluster.python={sys.executable}",
        f"model.path={model}",
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
        run.wait_steps(2, 3)
        assert run.launcher.wait(2 * START_S) == 0, run.output + run.logs()
    finally:
        run.launcher.kill()
        run.launcher.wait()
        slurm.cancel_all()
    assert json.loads((run.path / "result.json").read_text())["attempt"] == "2"
    assert run.find(2, "finished")[0]["outcome"] == run.end(2) == "completed"
    slurm.wait_empty()
