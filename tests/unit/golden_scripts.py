"""Job scripts, kept under ``golden``; ``python -m tests.unit.golden_scripts`` accepts them as they are now."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from launcher.config import Config, compose
from launcher.submit.job_array import array_script
from launcher.submit.job_script import JobScript, node_python, render, shipped, template_path
from launcher.submit.new_run import END, render_script
from launcher.submit.resources import slurm_config
from launcher.submit.slurm import SbatchCluster

GOLDEN = Path(__file__).parent / "golden"
ROOT = Path(__file__).parents[2]
RUN_DIR = Path("/shared/runs/rl-20260101-120000-0a1b")

GPUS = ("layout=gpu", "layout.nodes=4", "layout.inference_nodes=2", "name=rl", "output_dir=/shared/runs")
SITE = (*GPUS, "cluster.python=/opt/rl/bin/python", "cluster.partition=gpu", "cluster.account=lab")
CONTAINER = (
    *("cluster.container=/images/rl.sqsh", "cluster.container_mounts=/data:/data", "cluster.python=python3"),
    *("snapshot=false",),
)
SCENARIOS: dict[str, tuple[str, ...]] = {
    "plain": (*SITE, "cluster.setup=['module load cuda/12.8']", "cluster.srun_args=[--verbose]"),
    "container-pyxis": (*SITE, *CONTAINER),
    "container-apptainer": (*SITE, *CONTAINER, "cluster.container_runtime=apptainer"),
    "heterogeneous": (
        *(*SITE, "cluster.trainer.gpu_type=h100", "cluster.trainer.cpus_per_task=48"),
        *("cluster.inference.partition=inference", "cluster.inference.gpu_type=l40s"),
    ),
    "rendered": (*SITE, "snapshot=false"),
    "rendered-submitit": (*SITE, "snapshot=false"),
    "array": (*SITE, "cluster.qos=low", "+cluster.sbatch.comment='a sweep'"),
}


def config_of(scenario: str) -> Config:
    """The configuration of a scenario."""
    return compose(["+cluster=slurm", *SCENARIOS[scenario]])


def script_of(scenario: str) -> str:
    """The text of a scenario's job script."""
    os.chdir(ROOT)
    os.environ.pop("PYTHONPATH", None)
    config = config_of(scenario)
    how: dict[str, Callable[[Config], str]] = {
        "array": _array,
        "rendered": _rendered,
        "rendered-submitit": partial(_rendered, with_submitit=True),
    }
    return how.get(scenario, _single)(config)


def golden(text: str) -> str:
    """A script as it is kept: without what depends on this machine, and without the settings that it holds."""
    text = text.replace(sys.executable, "/home/me/venv/bin/python").replace(str(ROOT), "/home/me/checkout")
    return re.sub(rf"(?<=<<'{END}'\n).*?(?=^{END}$)", "...\n", text, flags=re.DOTALL | re.MULTILINE)


def _single(config: Config) -> str:
    command = f"{node_python(config)} -u -m submitit.core._submit {RUN_DIR}/submitit"
    return render(SbatchCluster(config).script(RUN_DIR, command), template_path(slurm_config(config)))


def _array(config: Config) -> str:
    command = f'{node_python(config)} -u -m submitit.core._submit "$RUN_DIR"/submitit'
    script: JobScript = array_script(config, RUN_DIR, RUN_DIR.parent / ".array-20260101-120000-2c3d", 12, 4, command)
    return render(script, shipped("array"))


def _rendered(config: Config, *, with_submitit: bool = False) -> str:
    return render_script(config, ROOT / "job.sbatch", with_submitit=with_submitit)


def main() -> None:
    """Writes all of them."""
    for scenario in SCENARIOS:
        (GOLDEN / f"{scenario}.sbatch").write_text(golden(script_of(scenario)))


if __name__ == "__main__":
    main()
