"""A version written through a weight map is byte for byte what vLLM's own loader makes of the same checkpoint.

The models are real vLLM models in real tensor-parallel groups, built without a server around them. As a program, this
module is one rank: ``python -m tests.integration.engine.test_weightmap_vllm FOLDER RANK WORLD_SIZE PORT``.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
SIZES = {
    "vocab_size": 100,  # vLLM pads it
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
EXPERTS = {"moe_intermediate_size": 64, "num_experts": 4, "num_experts_per_tok": 2, "head_dim": 32}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One model and how its trainer names and stores the weights."""

    architecture: str
    tied: bool = False
    sizes: dict[str, Any] = field(default_factory=dict)
    names: str = "module"
    """``module``: those of the module in memory; ``checkpoint``: those of its checkpoint."""

    dtype: str = "bfloat16"
    """Of the trainer; the engine has bfloat16."""


CASES = {
    "llama": Case(architecture="llama"),
    "llama-tied": Case(architecture="llama", tied=True),
    "llama-fp32-one-kv-head": Case(architecture="llama", dtype="float32", sizes={"num_key_value_heads": 1}),
    "qwen2": Case(architecture="qwen2"),
    "qwen2-tied": Case(architecture="qwen2", tied=True),
    "qwen3": Case(architecture="qwen3", sizes={"head_dim": 32}),
    "qwen3-tied": Case(architecture="qwen3", tied=True, sizes={"head_dim": 32}),
    "qwen3-moe": Case(architecture="qwen3_moe", sizes=EXPERTS),
    "qwen3-moe-tied": Case(architecture="qwen3_moe", tied=True, sizes=EXPERTS),
    "qwen3-moe-per-expert": Case(architecture="qwen3_moe", names="checkpoint", sizes=EXPERTS),
}


@pytest.fixture(scope="module", params=[1, 2], ids=["tp1", "tp2"])
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What every rank of one group found, for all cases."""
    folder = tmp_path_factory.mktemp(f"tp{request.param}")
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_CPU_KVCACHE_SPACE": "1"}
    command = [sys.executable, "-m", "tests.integration.engine.test_weightmap_vllm", str(folder)]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(request.param), str(port)],
            cwd=ROOT,
            # The identifier names the group's shared memory; vLLM's own launcher would set it.
            env=environment | {"OMP_NUM_THREADS": "1", "VLLM_DIST_IDENT": f"weightmap-{port}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(request.param)
    ]
    texts = [rank.communicate(timeout=400)[0] for rank in ranks]
    for rank, text in zip(ranks, texts, strict=True):
        assert rank.returncode == 0, text
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(request.param)]


@pytest.mark.engine
@pytest.mark.parametrize("name", CASES)
def test_replayed_bytes_equal_loaded_bytes(results: list[dict[str, Any]], name: str) -> None:
    for rank in results:
        found = rank[name]
        assert found["changed_by_tracing"] == []
        assert found["different_before"], "the versions must differ for this test to say anything"
        assert found["different"] == {"writer": [], "in place": []}
        assert found["methods"] == ["traced"]
    assert results[-1][name]["padded"], "a vocabulary of 100 is padded on the last rank"


@pytest.mark.engine
@pytest.mark.parametrize("name", CASES)
def test_processed_engines_equal_freshly_processed_ones(results: list[dict[str, Any]], name: str) -> None:
    """As they serve: on some processors vLLM keeps experts in a packed layout of its own."""
    for rank in results:
        assert rank[name]["different_processed"] == []
        assert set(rank[name]["methods_processed"]) <= ({"traced", "packed"} if "moe" in name else {"traced"})


@pytest.mark.engine
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.tied])
def test_staging_whole_modules_gives_the_same_bytes(results: list[dict[str, Any]], name: str) -> None:
    for rank in results:
        assert rank[name]["methods_reloaded"] == ["reloaded", "traced"]
        assert rank[name]["different_reloaded"] == []


def main(folder: Path, rank: int, size: int, port: int) -> None:
    """One rank: all cases, one after another."""
    from vllm.config import set_current_vllm_config
    from vllm.distributed import init_distributed_environment, initialize_model_parallel

    from tests.integration.engine import weightmap_models

    found: dict[str, Any] = {}
    # The first model decides which groups there are: only one with experts makes the expert-parallel one.
    cases = sorted(CASES.items(), key=lambda item: "moe" not in item[0])
    # All of them are saved before there is a group: transformers then leaves saving to rank 0.
    modules = {}
    for name, case in cases:
        for version in (0, 1):
            modules[name] = weightmap_models.trainer(case, version)
            modules[name].save_pretrained(folder / f"{name}-{rank}-{version}")
    for name, case in cases:
        begin = time.monotonic()
        paths = [folder / f"{name}-{rank}-{version}" for version in (0, 1)]
        config = weightmap_models.engine_config(paths[0], size)
        with set_current_vllm_config(config):
            if not found:
                init_distributed_environment(size, rank, f"tcp://127.0.0.1:{port}", rank, "gloo")
                initialize_model_parallel(size)
            found[name] = weightmap_models.compare(case, config, paths, modules[name])
        found[name]["seconds"] = time.monotonic() - begin
    (folder / f"{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
