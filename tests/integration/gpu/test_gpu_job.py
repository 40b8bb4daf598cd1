"""The launcher's own main job on GPUs, to its final check: a trainer and a vLLM on a GPU each, or both on one."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[3]
STEPS = 20


EACH_ITS_OWN = ("layout=gpu_split", "layout.gpus_per_node=2", "layout.colocate_inference_gpus=1", "inference=gpu")
SHARED = ("layout=gpu_share", "layout.gpus_per_node=1", "inference=gpu_share")


def missing() -> str | None:
    """Why this machine cannot run the job; None if it can."""
    if not torch.cuda.is_available():
        return "the job needs a GPU"
    return None if find_spec("vllm") else "the job needs vLLM, which is not installed"


def job(folder: Path, *overrides: str) -> list[dict[str, Any]]:
    """Runs the job; its events."""
    finished = subprocess.run(
        [
            *(sys.executable, "-m", "launcher", f"output_dir={folder}"),
            *(EACH_ITS_OWN if torch.cuda.device_count() > 1 else SHARED),
            *("inference.gpu_memory_utilization=0.3", f"trainer.steps={STEPS}"),
            # Neither needs more than vLLM itself.
            *("inference.args=[--attention-backend,TRITON_ATTN]", "+inference.env.VLLM_USE_FLASHINFER_SAMPLER=0"),
            *overrides,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout[-8000:] + finished.stderr[-8000:]
    (path,) = folder.glob("*/attempts/1/events.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.gpu
@pytest.mark.timeout(600)
@pytest.mark.skipif(missing() is not None, reason=str(missing()))
@pytest.mark.parametrize(
    "overrides",
    [("model.dtype=float32", "inference.enforce_eager=true"), ("model.dtype=bfloat16",)],
    ids=["float32-eager", "bfloat16-cuda-graphs"],
)
def test_the_main_job_publishes_every_version_and_passes_its_check(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    events = job(tmp_path, *overrides)
    steps = [event for event in events if event["event"] == "step"]
    assert [(step["step"], step["version"]) for step in steps] == [(step, step) for step in range(1, STEPS + 1)]
    # The engine and the trainer agree on what was sampled: it was sampled from the last version.
    assert max(step["mismatch"] for step in steps) < 0.05
    checks = [event for event in events if event["event"] == "check"]
    assert checks
    assert all(check["ok"] for check in checks), checks
    assert checks[-1]["movement"] > 3 * checks[-1]["difference_max"]
    assert events[-1]["event"] == "finished"
    assert events[-1]["outcome"] == "completed"
