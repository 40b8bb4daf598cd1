"""Plans of real sizes: balance, nearest holders, relays, the time on paper, and the time to plan (printed)."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter

import pytest

from launcher.bridge.plan import Engine, Location, Plan, Receiver, Sharding, place, plan_digest, reshard, verify_plan
from launcher.bridge.plan.sharding import fsdp, hsdp, replicated
from launcher.bridge.trainer.relay_tree import choose_parents
from launcher.testing.bench.engine_layout import Slice
from launcher.testing.bench.models import LLAMA_8B
from tests.unit.bridge.plan_simulator import MODELS, Links, main, on_paper, simulate

pytestmark = pytest.mark.slow


def timed_plan(name: str, engines: str, sharding: str = "fsdp", trainers: int = 16) -> Plan:
    started = time.perf_counter()
    plan = on_paper(MODELS[name], trainers=trainers, engines=engines, sharding=sharding)
    planned = time.perf_counter()
    verify_plan(plan)
    proven = time.perf_counter()
    assert len(plan_digest(plan)) == 64
    digested = time.perf_counter()
    segments = sum(len(t.split.boxes) for transfers in plan.transfers.values() for t in transfers)
    what = f"{name} {trainers} {sharding} -> {engines}: {segments} segments, {plan.rounds} rounds"
    times = (planned - started, proven - planned, digested - proven)
    print(what + "; requirements and plan {:.2f} s, proof {:.2f} s, digest {:.2f} s".format(*times))
    return plan


@pytest.mark.parametrize(
    ("name", "engines", "sharding", "trainers"),
    [
        ("llama-70b", "2xtp8", "fsdp", 16),
        ("llama-70b", "1xtp16", "fsdp", 16),
        ("llama-70b", "2xtp8", "hsdp2", 16),
        ("llama-70b", "2xtp8", "plain", 16),
        ("qwen3-235b", "1xep16", "fsdp", 16),
        ("kimi-1t", "1xep16", "fsdp", 16),
    ],
)
def test_the_time_on_paper_is_near_the_limit(name: str, engines: str, sharding: str, trainers: int) -> None:
    report = simulate(timed_plan(name, engines, sharding, trainers))
    print(f"  {report.seconds:.4f} s, limit {report.limit:.4f} s: {report.seconds / report.limit:.3f}x")
    assert report.seconds <= 1.1 * report.limit
    assert max(report.trainer_out) <= 1.01 * min(report.trainer_out)
    assert max(report.engine_in) <= 1.01 * min(report.engine_in)
    assert max(report.node_out.values()) <= 1.05 * max(report.node_in.values())


def test_the_limits_are_those_of_the_arithmetic() -> None:
    assert simulate(on_paper(MODELS["llama-70b"], trainers=16, engines="2xtp8")).limit == pytest.approx(0.353, abs=1e-3)
    assert simulate(on_paper(MODELS["llama-70b"], trainers=16, engines="1xtp16")).limit == pytest.approx(
        0.176, abs=1e-3
    )
    local = on_paper(LLAMA_8B, trainers=1, engines="1xtp1", colocated=True)
    assert simulate(local, Links(intra=450e9)).limit == pytest.approx(0.0357, abs=1e-4)


@pytest.mark.parametrize("sharding", [replicated(16), hsdp(2, 8), hsdp(4, 4)])
def test_replicated_shards_are_read_from_the_nearest_node(sharding: Sharding) -> None:
    """Two trainer nodes hold everything each, and an engine runs on the second."""
    trainers = [Location(node=i // 8, gpu=i % 8) for i in range(16)]
    parameters = tuple(LLAMA_8B.parameters(Slice(rank=r, size=8)) for r in range(8))
    engine = Engine(parameters=parameters, locations=tuple(Location(node=1, gpu=r) for r in range(8)))
    plan = reshard(place(LLAMA_8B.tensors(), [(".*", sharding)]), [engine], trainers)
    verify_plan(plan)
    report = simulate(plan)
    assert sum(report.trainer_out[:8]) == 0, "the first node's copies stay unread"
    assert not report.node_in


def test_the_same_gpu_is_nearer_than_the_same_node() -> None:
    trainers = [Location(node=0, gpu=i) for i in range(4)]
    engines = [Engine(parameters=(LLAMA_8B.parameters(Slice(rank=0, size=1)),), locations=(at,)) for at in trainers]
    plan = reshard(place(LLAMA_8B.tensors(), [(".*", replicated(4))]), engines, trainers)
    for index in range(4):
        assert {m.sender for m in plan.incoming(Receiver(engine=index, rank=0))} == {index}


def test_equally_near_holders_share_the_egress() -> None:
    for sharding in (replicated(3), hsdp(3, 2), fsdp(6)):
        trainers = [Location(node=0, gpu=i) for i in range(sharding.world_size)]
        engine = Engine(parameters=(LLAMA_8B.parameters(Slice(rank=0, size=1)),), locations=(Location(node=1, gpu=0),))
        plan = reshard(place(LLAMA_8B.tensors(), [(".*", sharding)]), [engine], trainers)
        verify_plan(plan)
        sent: Counter[object] = Counter()
        for message in plan.incoming(Receiver(engine=0, rank=0)):
            sent[message.sender] += message.nbytes
        assert len(sent) == sharding.world_size
        assert max(sent.values()) <= 1.005 * min(sent.values())


def test_no_relay_while_the_trainers_nodes_suffice() -> None:
    assert choose_parents([(9,), (8,)], [0, 1], 100) == [None, None]
    assert choose_parents([(9, 10), (7, 8)], [0, 1, 2, 3], 100) == [None, None]
    assert choose_parents([(0,), (1,), (0,)], [0, 1], 100) == [None, None, None]


def depth(parents: list[int | None], index: int) -> int:
    parent = parents[index]
    return 0 if parent is None else 1 + depth(parents, parent)


def test_many_rounds_make_chains_and_few_make_trees() -> None:
    replicas = [(10 + i,) for i in range(32)]
    chains = choose_parents(replicas, [0, 1], 500)
    assert max(Counter(p for p in chains if p is not None).values()) == 1
    assert chains.count(None) == 2
    assert max(depth(chains, index) for index in range(32)) == 15
    tree = choose_parents(replicas, [0, 1], 1)
    assert max(Counter(p for p in tree if p is not None).values()) > 1
    assert max(depth(tree, index) for index in range(32)) < 6


def test_the_network_carries_the_weights_once_to_replicas_of_one_node() -> None:
    assert choose_parents([(5,), (5,), (6,), (6,), (5,)], [0], 100) == [None, 0, 0, 2, 1]


def test_the_command_prints_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", "llama-8b", "--trainers", "8", "--engines", "1xtp8"]) == 0
    out = capsys.readouterr().out
    assert "16.06 GB on the wire" in out
    assert "limit" in out
    assert main(["--engines", "two"]) == 8
    assert "--engines" in capsys.readouterr().err


def test_planning_imports_neither_torch_nor_numpy() -> None:
    code = "import sys, tests.unit.bridge.plan_simulator; print([m for m in ('torch', 'numpy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
