"""A vLLM with CUDA graphs takes version after version from a trainer while requests never cease.

The trainer has a GPU of its own, if there are two; else it shares the engine's.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from typing import Any

import pytest
import torch

from launcher.common.env import LAUNCHER_TOKEN
from tests.integration.engine.answers import check_answers, spanning, unsure
from tests.integration.engine.test_publish import gap, tokens
from tests.integration.engine.vllm_server import ROOT, serving
from tests.integration.gpu.load_program import THEIR_IPC, THEIR_NCCL
from tests.integration.gpu.test_gpu_job import missing

SHARED = torch.cuda.device_count() < 2
OURS, THEIRS = (["ipc"], THEIR_IPC) if SHARED else (["peer", "nccl"], THEIR_NCCL)
TRANSPORTS = [*OURS, THEIRS]
UPDATES = 60
TIMEOUT_S = 240
ON_GPU = ("--dtype", "bfloat16", "--gpu-memory-utilization", "0.3", "--attention-backend", "TRITON_ATTN")


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the trainer of :mod:`tests.integration.gpu.load_program` saw."""
    from launcher.trainers.grpo.tiny_model import TinyModel, make_tiny_model  # here, because it takes seconds

    folder = tmp_path_factory.mktemp("load")
    # Qwen3-0.6B's shape but for its vocabulary: 0.44e9 parameters.
    spec = TinyModel(
        layers=28, hidden_size=1024, intermediate_size=3072, attention_heads=16, key_value_heads=8, head_dim=128
    )
    model, out = make_tiny_model(folder / "model", spec, dtype=torch.bfloat16), folder / "facts.json"
    arguments = ["--weight-transfer-config", json.dumps({"backend": THEIRS.removeprefix("their ")})]
    environ = {
        "CUDA_VISIBLE_DEVICES": "0" if SHARED else "1",
        "VLLM_USE_FLASHINFER_SAMPLER": "0",
        # For vLLM's own weight transfer, which has no other routes; on this machine alone, and behind the run's key.
        "VLLM_SERVER_DEV_MODE": "1",
        "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",
    }
    command = [sys.executable, "-m", "tests.integration.gpu.load_program", str(out)]
    with serving(model, folder, arguments, ON_GPU, environ) as (url, token):
        trainer = {"CUDA_VISIBLE_DEVICES": "0", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
        finished = subprocess.run(
            [*command, url, str(model), str(UPDATES), *TRANSPORTS],
            cwd=ROOT,
            env={**os.environ, **trainer, LAUNCHER_TOKEN: token},
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    assert finished.returncode == 0, finished.stdout + finished.stderr + (folder / "engine.log").read_text()[-20000:]
    found: dict[str, Any] = json.loads(out.read_text())
    return found


@pytest.mark.gpu
@pytest.mark.timeout(600)
@pytest.mark.skipif(missing() is not None, reason=str(missing()))
class TestLoad:
    @pytest.mark.parametrize("transport", OURS)
    def test_every_token_is_of_the_version_that_its_answer_declares(
        self, facts: dict[str, Any], transport: str
    ) -> None:
        of = facts[transport]
        assert of["failures"] == []
        assert len(of["seconds"]) == UPDATES
        declared = check_answers(of["answers"])
        assert len({version for versions in declared for version in versions}) >= UPDATES / 2
        assert spanning(declared) >= UPDATES / 10
        # An answer whose tokens fell beside a commit cannot tell; with an update every 50 ms that is one in nine.
        assert unsure(of["answers"]) < len(of["answers"]) / 5

    @pytest.mark.parametrize("transport", TRANSPORTS)
    def test_answers_afterwards_are_those_of_an_engine_that_has_just_loaded_the_checkpoint(
        self, facts: dict[str, Any], transport: str
    ) -> None:
        assert tokens(facts[transport]["after"]) == tokens(facts["loaded"])
        assert gap(facts[transport]["after"], facts["loaded"]) <= 1e-3

    @pytest.mark.parametrize("transport", OURS)
    def test_the_engine_pauses_for_less_than_with_its_own_transfer(self, facts: dict[str, Any], transport: str) -> None:
        assert statistics.median(facts[transport]["pauses"]) < statistics.median(facts[THEIRS]["pauses"])

    def test_what_was_measured_is_told(self, facts: dict[str, Any]) -> None:
        for name in TRANSPORTS:
            of = facts[name]
            for what in ("seconds", "pauses"):
                ordered = sorted(of[what])
                print(
                    f"{name}, {what}: median {1000 * statistics.median(ordered):.1f} ms,"
                    f" p95 {1000 * ordered[int(0.95 * (len(ordered) - 1))]:.1f} ms, {len(of['answers'])} answers"
                )
                assert ordered[0] > 0
