"""The defects of the single-file bridge that this project grew from: those that no other test shows gone.

Tests marked ``seed`` would have failed on that bridge. Most of them stand where their subject is tested;
``seed_defects.md`` lists the defects by number.
"""

from __future__ import annotations

import ast
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

import launcher
from launcher.bridge.settings import BridgeSettings
from launcher.bridge.trainer.api import Bridge
from launcher.common.errors import TransferError
from tests.integration.bridge.transfer_case import TransferCase

pytestmark = pytest.mark.slow

TESTS = Path(__file__).parents[1]
LIST = Path(__file__).with_name("seed_defects.md").read_text(encoding="utf-8")
DEFECTS = set(re.findall(r"^\| (D\d+) \|", LIST, re.MULTILINE))
PRIVATE = re.compile(
    r"_new_process_group_helper|distributed_c10d\._world|\b_world\b|_get_default_store|_rank_not_in_group"
)


def test_every_defect_has_a_test() -> None:
    shown: set[str] = set()
    for path in TESTS.rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.seed":
                shown |= {str(ast.literal_eval(argument)) for argument in node.args}
    assert shown == DEFECTS == {f"D{number}" for number in range(1, 34)}


@pytest.mark.seed("D20")
def test_there_is_one_message_per_pair_of_ranks_and_round_however_many_tensors() -> None:
    case = TransferCase(trainers=3, workers=2, round_bytes=1 << 20)
    messages = [message for rank in range(case.trainers) for message in case.plan.outgoing(rank)]
    assert len(messages) <= case.trainers * case.workers * case.plan.rounds
    assert sum(len(message.segments) for message in messages) > 5 * len(messages)


@pytest.mark.seed("D29")
def test_under_torchrun_a_group_has_a_rendezvous_of_its_own() -> None:
    """There torch makes even rank 0 a client of the agent's store, unless it is told otherwise."""
    program = """
import sys
from datetime import timedelta
import torch
from launcher import bridge
group = bridge.init_process_group(
    "gloo", init_method=f"tcp://127.0.0.1:{sys.argv[1]}", world_size=1, rank=0, group_name="update",
    timeout=timedelta(seconds=60), address="127.0.0.1",
)
tensor = torch.ones(3)
group.broadcast(tensor, 0).wait()
print(tensor.sum().item())
"""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    environ = {
        **os.environ,
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RUN_ID": "none",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "1",
    }
    finished = subprocess.run(
        [sys.executable, "-c", program, str(port)], env=environ, capture_output=True, text=True, check=False
    )
    assert finished.stdout.strip() == "3.0", finished.stderr


@pytest.mark.seed("D30")
def test_no_private_helper_of_torch_makes_a_group() -> None:
    for path in Path(launcher.__file__).parent.rglob("*.py"):
        assert not PRIVATE.search(path.read_text()), path


@pytest.mark.seed("D32")
@pytest.mark.parametrize("listens", [False, True], ids=["nobody", "somebody who never answers"])
def test_an_engine_that_is_not_there_is_an_error_within_the_deadline(listens: bool) -> None:
    with socket.socket() as engine:
        engine.bind(("127.0.0.1", 0))
        if listens:
            engine.listen()
        url = f"http://127.0.0.1:{engine.getsockname()[1]}"
        bridge = Bridge(BridgeSettings(urls=(url,), token="00", timeout_s=2.0))
        begin = time.monotonic()
        with pytest.raises(TransferError, match=re.escape(url)):
            bridge.publish(nn.Linear(2, 2, dtype=torch.float32), version=1)
        bridge.close()
        # Joining, and leaving after it failed, are bounded; seconds, where the seed waited for half an hour.
        assert time.monotonic() - begin < 60
