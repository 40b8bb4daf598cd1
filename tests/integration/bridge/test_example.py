"""The documented example of the bridge without a run: two processes, and no variable of an agent."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

import launcher
from tests.integration.bridge.plain_replica import PlainReplica, serving

EXAMPLE = Path(launcher.__file__).parent / "docs" / "examples" / "publish_without_a_run.py"
TOKEN = "a token of the tests"


def test_the_example_publishes_into_an_engine_that_no_run_started(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "launcher.trainers.grpo.tiny_model", str(tmp_path), "--architecture", "llama"]
    subprocess.run(command, check=True, capture_output=True)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    replica = PlainReplica({name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items()}, {})
    environ = {name: value for name, value in os.environ.items() if not name.startswith("LAUNCHER_")}
    with serving(replica, TOKEN) as url:
        finished = subprocess.run(
            [sys.executable, str(EXAMPLE), url, str(tmp_path)],
            env={**environ, "LAUNCHER_TOKEN": TOKEN, "PYTHONPATH": str(Path(launcher.__file__).parents[1])},
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.splitlines()[-1] == "the engine serves version 2"
    for name, tensor in model.state_dict().items():
        assert torch.equal(replica.live[name], tensor * 1.001 * 1.001), name


def test_the_bridge_is_a_library_without_the_rest() -> None:
    """What a program imports that has engines of its own, and a replica's worker imports."""
    program = """
import sys
from launcher.bridge import Bridge, BridgeSettings, connect
import launcher.bridge.engine.worker, launcher.bridge.engine.state_machine, launcher.bridge.compat
packages = {name.split(".")[1] for name in sys.modules if name.startswith("launcher.")}
print(sorted(packages))
"""
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == "['bridge', 'common']"
