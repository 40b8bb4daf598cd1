"""The measurement of the bridge runs, checks what it moved, and writes down what it found."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_every_way_is_measured_in_one_run_over_the_same_tensors(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "launcher.testing.bench",
        "bridge",
        "--model",
        "micro",
        "--repeats",
        "2",
        "--workers",
        "2",
    ]
    finished = subprocess.run(
        [*command, "--out", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    facts = json.loads((tmp_path / "bench-bridge.json").read_text())
    names = {way["name"] for way in facts["ways"]}
    for way in (
        "ours: shm",
        "ours: shm, verified",
        "ours: gloo",
        "ours: gloo, 1 % changed, verified",
        "broadcast per parameter",
        "broadcasts, coalesced",
    ):
        assert way in names
    assert any(name.startswith("packed broadcast") for name in names)
    assert any(name.startswith("index and all-gather") for name in names)
    assert any(name.startswith("ceiling") for name in names)
    # The ceilings are measured before and after all others.
    for way in facts["ways"]:
        assert len(way["seconds"]) == (4 if way["name"].startswith("ceiling") else 2), way["name"]
        assert way["median_s"] <= way["p95_s"]
    assert all(name in finished.stdout for name in names)
    assert (tmp_path / "bench-bridge.png").read_bytes().startswith(b"\x89PNG")


def refused(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A measurement that cannot be made on a machine without GPUs."""
    return subprocess.run(
        [sys.executable, "-m", "launcher.testing.bench", "bridge", "--model", "micro", *arguments],
        cwd=ROOT,
        env={"PATH": "", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_a_rank_that_fails_ends_the_measurement() -> None:
    finished = refused("--only", "(")
    assert finished.returncode == 5
    assert "of the measurement ended with" in finished.stderr


def test_too_few_gpus_are_said_before_anything_starts() -> None:
    finished = refused("--device", "cuda", "--workers", "2")
    assert finished.returncode == 2
    assert "`--workers=2` needs 3 GPUs, or one that all share; here are 0." in finished.stderr
    assert "Rank" not in finished.stderr
