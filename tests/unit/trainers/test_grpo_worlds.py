"""Updates sharded over two ranks give what one rank gives. Run as a program, this file is one such rank."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from launcher.trainers.grpo.model import TrainerRank, load_model, wire_copy
from launcher.trainers.grpo.rollout import Completion
from launcher.trainers.grpo.tiny_model import TinyModel, make_tiny_model
from launcher.trainers.grpo.update import Updater, make_batch


@pytest.mark.slow
def test_two_ranks_do_what_one_does(tmp_path: Path) -> None:
    models = [make_tiny_model(tmp_path / str(tied), TinyModel(tied=tied)) for tied in (False, True)]
    alone = TrainerRank(rank=0, local_rank=0, world_size=1, device=torch.device("cpu"))
    for model, two in zip(models, on_two_ranks(models, tmp_path / "two.pt"), strict=True):
        same(two_updates(model, alone), two)


def same(one: dict[str, Any], two: dict[str, Any]) -> None:
    assert one["updates"][0] == pytest.approx(two["updates"][0], rel=1e-3)
    # Adam divides by the gradient's size, so that rounding is large where a gradient is next to nothing.
    assert one["updates"][1] == pytest.approx(two["updates"][1], rel=2e-2)
    assert one["state"].keys() == two["state"].keys()
    for name, weight in one["state"].items():
        assert torch.allclose(weight, two["state"][name], atol=2e-4), name


def on_two_ranks(models: list[Path], file: Path) -> list[dict[str, Any]]:
    """Starts two ranks the way the agent does: the rendezvous store is the test's."""
    store = dist.TCPStore(  # type: ignore[attr-defined]
        "127.0.0.1", 0, is_master=True, wait_for_workers=False
    )
    environ = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "WORLD_SIZE": "2",
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", __name__, str(file), *map(str, models)],
            env={**environ, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    try:
        assert [rank.wait(timeout=300) for rank in ranks] == [0, 0]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    result: list[dict[str, Any]] = torch.load(file)
    return result


def two_updates(model_path: Path, worker: TrainerRank) -> dict[str, Any]:
    """What this rank's two updates report, and on rank 0 the weights after them."""
    model = load_model(model_path, worker)
    updater = Updater(
        model=model,
        optimizer=torch.optim.AdamW(model.parameters(), lr=1e-3),
        worker=worker,
        dtype="bfloat16",
        temperature=1.0,
        micro_batch=3,
        epochs=2,
        entropy_coef=0.01,
    )
    # Groups of different lengths, dealt out to the ranks: their shares of the tokens are not equal.
    prompts = [[3, 13, 4, 16], [5, 13, 6, 16]]
    groups = [[completion(7), completion(8, 9, 1)], [completion(10, 1), completion(11, 12, 13, 14)]]
    rewards = [[0.0, 1.0], [1.0, 0.0]]
    mine = slice(worker.rank, None, worker.world_size)
    batch = make_batch(prompts[mine], groups[mine], rewards[mine], pad=0, device=worker.device)
    reports = [updater(batch) for _ in range(2)]
    copy = wire_copy(model, worker, "float32")
    return {
        "updates": [[report.loss, report.grad_norm, report.mismatch, report.mismatch_max] for report in reports],
        "state": copy.state_dict() if worker.is_main else {},
    }


def completion(*token_ids: int) -> Completion:
    return Completion(token_ids=token_ids, logprobs=(-3.0,) * len(token_ids), finished=token_ids[-1] == 1)


if __name__ == "__main__":
    RANK = TrainerRank.from_environment("cpu")
    RANK.join()
    RESULTS = [two_updates(Path(model), RANK) for model in sys.argv[2:]]
    if RANK.is_main:
        torch.save(RESULTS, sys.argv[1])
    RANK.end()
