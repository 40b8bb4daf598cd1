"""A checkpoint is whole or is not taken, and what resumes from it goes on to the last bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from launcher.checkpoint import CheckpointError, Checkpoints, store
from tests.unit import checkpoint_program

pytestmark = pytest.mark.slow

TIMEOUT_S = 150
PROGRAM = [sys.executable, "-m", "tests.unit.checkpoint_program"]


def on_two_ranks(mode: str, folder: Path) -> list[dict[str, dict[str, list[str]]]]:
    """What each rank wrote."""
    server = dist.TCPStore(  # type: ignore[attr-defined]
        "127.0.0.1", 0, is_master=True, wait_for_workers=False
    )
    environ = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(server.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "WORLD_SIZE": "2",
    }
    ranks = [
        subprocess.Popen(
            [*PROGRAM, mode, str(folder), "fsdp", "tensor parallel"],
            env={**environ, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    try:
        assert [rank.wait(timeout=TIMEOUT_S) for rank in ranks] == [0, 0]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    return [json.loads((folder / f"{mode}-{rank}.json").read_text()) for rank in range(2)]


def test_sharded_trainers_resume_to_the_last_bit(tmp_path: Path) -> None:
    for one, rest in zip(on_two_ranks("exact", tmp_path), on_two_ranks("resume", tmp_path), strict=True):
        for kind in ("fsdp", "tensor parallel"):
            whole = one[kind]["whole"]
            assert len(set(whole)) == len(whole)
            assert one[kind]["half"] + one[kind]["after saving"] == whole, kind
            assert one[kind]["half"] + rest[kind]["rest"] == whole, kind


def test_a_death_at_any_point_of_a_save_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    done = subprocess.run(
        [*PROGRAM, "crash", str(tmp_path)], capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert done.returncode == 0, done.stderr
    restored = json.loads(done.stdout)["restored"]
    # The second save's result until the third one is complete, which it is from one point on.
    assert restored == sorted(restored)
    assert restored.count(2) >= 5 and restored.count(3) >= 3, restored
    assert set(restored) == {2, 3}


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return small(tmp_path)


def small(folder: Path, width: int = 2) -> Checkpoints:
    model = torch.nn.Linear(width, width)
    return Checkpoints(folder / "checkpoint", model=model, optimizer=torch.optim.SGD(model.parameters()), keep=2)


def test_only_the_last_are_kept(checkpoints: Checkpoints) -> None:
    assert checkpoints.restore() == 0
    paths = [checkpoints.save(step) for step in (5, 10, 15)]
    assert store.complete_checkpoints(checkpoints.directory) == [paths[2], paths[1]]
    assert not paths[0].exists()
    manifest = store.read_manifest(paths[2])
    assert (manifest.step, manifest.version, manifest.world_size) == (15, 15, 1)
    assert {".metadata", "__0_0.distcp", "rank-00000.json"} == set(manifest.files)


def test_the_same_step_is_written_once(checkpoints: Checkpoints) -> None:
    path = checkpoints.save(5)
    before = (path / store.MANIFEST).stat()
    assert checkpoints.save(5) == path
    assert (path / store.MANIFEST).stat().st_ino == before.st_ino


@pytest.mark.parametrize("harm", ["byte", "shorter", "missing", "no manifest", "broken manifest"])
def test_a_damaged_one_is_passed_over_and_written_anew(checkpoints: Checkpoints, tmp_path: Path, harm: str) -> None:
    checkpoints.save(5)
    path = checkpoints.save(10)
    shards = path / "__0_0.distcp"
    content = bytearray(shards.read_bytes())
    if harm == "byte":
        content[len(content) // 2] ^= 1
        shards.write_bytes(content)
    elif harm == "shorter":
        shards.write_bytes(content[:-1])
    elif harm == "missing":
        shards.unlink()
    elif harm == "no manifest":
        (path / store.MANIFEST).unlink()
    else:
        (path / store.MANIFEST).write_text('{"step": 10')
    again = small(tmp_path)
    assert again.restore() == 5
    assert again.save(10) == path
    assert small(tmp_path).restore() == 10
    assert [p.name for p in again.directory.iterdir() if p.name.startswith(".")] == []


class Averages:
    """Averaged weights, and what torchdata's loaders have: bytes, a tensor, and keys that are no text."""

    def __init__(self, value: float) -> None:
        self.state: dict[str, Any] = {"weights": torch.full((3,), value), "steps": int(value)}

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.state = state_dict


def with_states(folder: Path, value: float, *names: str) -> tuple[Checkpoints, dict[str, Averages], Averages]:
    model = torch.nn.Linear(2, 2)
    states, data = {name: Averages(value) for name in names}, Averages(value)
    data.state = {"position": {0: int(value)}, "generator": torch.full((2,), value), "raw": bytes([int(value)])}
    optimizer = torch.optim.SGD(model.parameters())
    return Checkpoints(folder / "c", model=model, optimizer=optimizer, data=data, states=states), states, data


def test_states_by_name_and_a_loaders_position_that_is_no_json_come_back(tmp_path: Path) -> None:
    with_states(tmp_path, 7, "ema", "scheduler")[0].save(5)
    again, states, data = with_states(tmp_path, 1, "ema", "scheduler")
    assert again.restore() == 5
    for state in states.values():
        assert (state.state["weights"].tolist(), state.state["steps"]) == ([7.0] * 3, 7)
    assert (data.state["position"], data.state["raw"]) == ({0: 7}, bytes([7]))
    assert data.state["generator"].tolist() == [7.0, 7.0]


def test_states_that_are_not_those_of_the_checkpoint_are_named(tmp_path: Path) -> None:
    with_states(tmp_path, 7, "ema")[0].save(5)
    with pytest.raises(CheckpointError, match=r"has `ema.steps` and 1 more, which is not to be restored. HINT"):
        with_states(tmp_path, 1)[0].restore()
    with pytest.raises(CheckpointError, match=r"has no `scheduler.steps` and 1 more, but it is to be restored. HINT"):
        with_states(tmp_path, 1, "ema", "scheduler")[0].restore()


def test_two_ranks_shards_resume_on_one(tmp_path: Path) -> None:
    (first, _) = on_two_ranks("exact", tmp_path)
    for kind in ("fsdp", "tensor parallel"):
        one = checkpoint_program.Run("plain", tmp_path / kind, seed=99)
        assert one.checkpoints.restore() == checkpoint_program.HALF
        assert checkpoint_program.weights(one.model) == first[kind]["weights"]
        assert one.data.position == checkpoint_program.HALF
        one.step()


def test_different_positions_in_the_data_need_the_same_number_of_ranks(tmp_path: Path) -> None:
    path = with_states(tmp_path, 7)[0].save(5)
    manifest = json.loads((path / store.MANIFEST).read_text())
    (path / "rank-00001.json").write_text((path / "rank-00000.json").read_text().replace("torch.save", "other"))
    (path / store.MANIFEST).write_text(json.dumps({**manifest, "world_size": 2}))
    with pytest.raises(CheckpointError, match="2 trainer ranks with different positions in the data, but there are 1"):
        with_states(tmp_path, 1)[0].restore()


def test_another_model_is_refused(checkpoints: Checkpoints, tmp_path: Path) -> None:
    checkpoints.save(5)
    with pytest.raises(CheckpointError, match="Could not load"):
        small(tmp_path, width=3).restore()


def test_what_cannot_be_written_is_said_and_harms_nothing(checkpoints: Checkpoints, tmp_path: Path) -> None:
    checkpoints.save(5)
    # A file in the place of the draft's directory: not even root can write below it.
    store.draft_path(checkpoints.directory, 10, "0.0").write_text("")
    with pytest.raises(CheckpointError, match="Could not write"):
        checkpoints.save(10)
    assert small(tmp_path).restore() == 5
