"""What a transfer makes of wrong bits, dead and hung peers, and two sides that mean different things."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
import torch

from launcher.bridge.negotiation import replica_plan
from launcher.bridge.plan import Box, Location, Placement, Sharding, fingerprints, first_difference, plan_digest
from launcher.bridge.plan.sharding import fsdp, replicated
from launcher.bridge.protocol import Connect, ConnectReply, TensorEntry, TrainerSpec, WorkerConnected, WorkerSpec
from launcher.bridge.trainer.connect import ConnectSettings, connect_replicas
from launcher.bridge.trainer.discovery import ReplicaInfo
from launcher.bridge.trainer.replica_client import ReplicaClient
from launcher.bridge.transport.choose import here
from launcher.bridge.weightmap import BoundParameter, CopyOp, LoadMethod, WeightMap
from launcher.common.codec import from_json, to_json
from launcher.common.ports import serve_store
from tests.integration.bridge.peer_process import Answer, Pool
from tests.integration.bridge.transfer_case import TransferCase
from tests.integration.bridge.transfer_process import content

CPU = torch.device("cpu")
MASK = (1 << 64) - 1
SHORT_S = 3.0
"""Deadline of a transfer that cannot succeed."""

SLACK_S = 5.0
"""For a busy machine."""

ROUND_BYTES = 8 << 20
"""Six rounds for the large model, two more than a sender has on their way at a time."""

KILL_OR_STOP = pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])


def large(trainers: int, workers: int) -> TransferCase:
    """A model that does not fit in what the system buffers."""
    return TransferCase(trainers=trainers, workers=workers, model="large", round_bytes=ROUND_BYTES)


def contents_of(case: TransferCase, version: int) -> list[Answer]:
    """What each worker must hold."""
    whole = case.state(version)
    return [
        {name: content(tensor) for name, tensor in case.expected(whole, rank).items()} for rank in range(case.workers)
    ]


@KILL_OR_STOP
@pytest.mark.seed("D24")
def test_a_receiver_lost_on_the_way_fails_its_senders_in_time_and_no_other_replica(
    pool: Pool, number: signal.Signals
) -> None:
    case = large(trainers=2, workers=1)
    lost = pool.join(case, hold="large.20")
    other = pool.join(case, senders=lost.senders, besides=lost.workers)
    other.publish(1)
    (worker,) = lost.workers
    lost.prepare(1)
    lost.start_send(1, timeout_s=SHORT_S)
    assert worker.next_answer() == {"held": "large.20"}
    worker.signal(number)
    for sender in lost.senders:
        answer = sender.next_answer()
        assert answer["error"].startswith("TransferError: sending round"), answer
        assert answer["seconds"] < SHORT_S + SLACK_S
    for sender in lost.senders:
        assert sender.call("close", group=lost.group) == {}
    other.publish(2)
    assert other.contents() == contents_of(case, 2)
    worker.end()
    successor = pool.join(case, senders=lost.senders, besides=other.workers)
    assert successor.workers != lost.workers
    successor.publish(2)
    assert successor.contents() == contents_of(case, 2)
    other.publish(3)
    successor.close()
    other.close()


@pytest.mark.parametrize("model", ["small", "large"])
def test_a_receiver_killed_between_two_versions_fails_the_next_one(pool: Pool, model: str) -> None:
    case = TransferCase(trainers=1, workers=2, model=model, round_bytes=ROUND_BYTES)
    replica = pool.join(case)
    replica.publish(1)
    survivor, dead = replica.workers
    survivor.call("prepare", group=replica.group, version=2)
    dead.end()
    (answer,) = replica.send(2, timeout_s=SHORT_S)
    assert answer["error"].startswith("TransferError: sending round 0 to worker 1"), answer
    assert answer["seconds"] < SHORT_S + SLACK_S
    assert survivor.call("contents", group=replica.group) == contents_of(case, 1)[0]
    replica.close()


@KILL_OR_STOP
@pytest.mark.seed("D13")
def test_a_sender_lost_on_the_way_fails_the_receivers_in_time_and_nothing_is_committed(
    pool: Pool, number: signal.Signals
) -> None:
    case = large(trainers=3, workers=2)
    timeout_s = 5.0
    replica = pool.join(case, timeout_s=timeout_s)
    replica.publish(1)
    replica.prepare(2)
    # Its third of every tensor goes to both workers.
    first, lost, last = replica.senders
    survivors = (first, last)
    lost.send_command("send", group=replica.group, version=2, timeout_s=30.0, hold="large.30")
    assert lost.next_answer() == {"held": "large.30"}
    lost.signal(number)
    for survivor in survivors:
        survivor.send_command("send", group=replica.group, version=2, timeout_s=timeout_s)
    for status in replica.statuses(timeout_s + SLACK_S):
        assert status["state"] == "failed"
        assert "receiving round" in status["error"]
        assert status["seconds"] < timeout_s + SLACK_S
    for survivor in survivors:
        survivor.next_answer()
    assert all("has not been received" in answer["error"] for answer in replica.commit(2))
    assert all("no whole version" in answer["error"] for answer in replica.prepare(3, ["large.00"]))
    assert replica.contents() == contents_of(case, 1)
    for worker in replica.workers:
        assert worker.call("close", group=replica.group)["seconds"] < SLACK_S
    for survivor in survivors:
        survivor.call("close", group=replica.group)
    lost.end()
    # The same engines take the next version from whoever trains next.
    again = pool.join(case, senders=[*survivors, *pool.take(1, [*survivors, *replica.workers])])
    again.publish(3)
    assert again.contents() == contents_of(case, 3)
    again.close()


def test_a_receiver_can_leave_while_it_waits_for_a_sender_that_hangs(pool: Pool) -> None:
    case = large(trainers=1, workers=1)
    replica = pool.join(case)
    replica.prepare(1)
    (sender,), (worker,) = replica.senders, replica.workers
    sender.send_command("send", group=replica.group, version=1, timeout_s=30.0, hold="large.30")
    assert sender.next_answer() == {"held": "large.30"}
    sender.signal(signal.SIGSTOP)
    assert worker.call("close", group=replica.group)["seconds"] < SLACK_S
    sender.end()


def test_a_version_that_is_prepared_supersedes_one_that_is_still_being_received(pool: Pool) -> None:
    """Nothing of the old one is taken for the new one: the worker leaves its wires, and is joined anew."""
    case = large(trainers=1, workers=1)
    replica = pool.join(case, timeout_s=120.0)
    replica.publish(1)
    assert replica.prepare(2) == [{}]
    (answer,) = replica.prepare(3)
    assert "version 2 was still being received and is given up" in answer["error"]
    assert "error" in replica.send(2, timeout_s=SHORT_S)[0]
    assert "has not been received" in replica.commit(2)[0]["error"]
    assert replica.contents() == contents_of(case, 1)
    replica.close()
    again = pool.join(case, senders=replica.senders)
    again.publish(3)
    assert again.contents() == contents_of(case, 3)
    again.close()


@pytest.mark.parametrize(
    ("name", "byte", "bit"), [("norm", 0, 0), ("norm", 51, 7), ("one", 3, 6), ("turned", 211, 3), ("widened", 8, 5)]
)
def test_one_bit_that_changes_on_the_wire_changes_the_digest_of_that_worker_only(
    pool: Pool, name: str, byte: int, bit: int
) -> None:
    """The sender packs a tensor with a wrong bit and counts the right one."""
    case = TransferCase(trainers=1, workers=2, placement="plain", round_bytes=1 << 20)
    replica = pool.join(case)
    replica.prepare(1)
    flip = {"name": name, "byte": byte, "bit": bit, "times": 0, "stays": False}
    (sent,), received = replica.send(1, flip=flip), replica.statuses()
    assert [a & MASK == b["digest"] for a, b in zip(sent["digests"], received, strict=True)] == [False, True]
    # The same version without the fault, through the same group.
    (sent,), received = replica.publish(1)
    assert [a & MASK for a in sent["digests"]] == [status["digest"] for status in received]
    assert replica.contents() == [
        {key: content(tensor) for key, tensor in case.expected(case.state(1), rank).items()} for rank in range(2)
    ]
    replica.close()


def test_one_bit_that_changes_in_the_shadow_changes_the_digest(pool: Pool) -> None:
    """After unpacking, before the digest: what is compared is what will be written, not what came."""
    case = TransferCase(trainers=1, workers=1, round_bytes=1 << 20)
    flip = {"name": "qkv_proj", "byte": 1000, "bit": 2, "times": 3, "stays": True}
    replica = pool.join(case, flip=flip)
    replica.prepare(1)
    (sent,), (status,) = replica.send(1), replica.statuses()
    assert status["state"] == "received"
    assert sent["digests"][0] & MASK != status["digest"]
    replica.close()


def test_two_sides_that_plan_differently_learn_which_tensor_it_is_about(pool: Pool) -> None:
    # In one round, so that nothing moves from one round to another because of it.
    ours = TransferCase(trainers=3, workers=2, round_bytes=1 << 20)
    theirs = TransferCase(trainers=3, workers=2, round_bytes=1 << 20, misplaced="o")
    a, b = pool.take(2)
    mine, other, same = (end.call("plan", case=case.to_json()) for end, case in ((a, ours), (b, theirs), (b, ours)))
    assert mine == same
    assert mine["digest"] != other["digest"]
    assert first_difference(ours.plan, other["fingerprints"]) == "o"


NAMES = ("alpha", "beta", "gamma")


def facts(shardings: dict[str, Sharding]) -> TrainerSpec:
    """Three tensors on two trainer ranks."""
    return TrainerSpec.of(
        manifest=tuple(TensorEntry(name=name, shape=(8, 4), dtype="float32") for name in NAMES),
        placements={name: Placement(shardings=(sharding,)) for name, sharding in shardings.items()},
        locations=(Location(node=0, gpu=0), Location(node=0, gpu=1)),
        round_bytes=1 << 20,
    )


def worker_of(trainer: TrainerSpec) -> WorkerSpec:
    """A worker that holds each tensor whole."""
    whole = Box.full((8, 4))
    parameters = tuple(
        BoundParameter(
            name=f"model.{name}",
            shape=(8, 4),
            strides=(4, 1),
            dtype="float32",
            method=LoadMethod.TRACED,
            copies=(
                CopyOp(
                    source_name=name,
                    source_box=whole,
                    parameter=f"model.{name}",
                    offset=0,
                    shape=(8, 4),
                    strides=(4, 1),
                ),
            ),
        )
        for name in NAMES
    )
    weight_map = WeightMap(manifest=trainer.manifest, parameters=parameters)
    return WorkerSpec(weight_map=weight_map.to_json(), location=Location(node=1, gpu=0), place=here(CPU))


class Engine(BaseHTTPRequestHandler):
    """An engine that answers ``connect`` with a plan that it made from other facts."""

    facts: TrainerSpec

    def do_POST(self) -> None:
        """Plans for itself."""
        request = from_json(self.rfile.read(int(self.headers["Content-Length"])), Connect)
        plan = replica_plan(self.facts, request.workers)
        worker = WorkerConnected(plan=plan_digest(plan), fingerprints=fingerprints(plan))
        content = to_json(ConnectReply(workers=(worker,), version=None))
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""


@pytest.fixture
def engine() -> Iterator[str]:
    """Its URL."""
    theirs = facts({"alpha": fsdp(2), "beta": replicated(2), "gamma": fsdp(2)})
    Engine.facts = from_json(to_json(theirs), TrainerSpec)
    server = HTTPServer(("127.0.0.1", 0), Engine)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.seed("D26")
def test_joining_ends_with_the_name_of_the_first_tensor_that_the_sides_differ_in(engine: str) -> None:
    ours = facts(dict.fromkeys(NAMES, fsdp(2)))
    store, address = serve_store("127.0.0.1", 5.0)
    settings = ConnectSettings(
        address="127.0.0.1",
        transport="auto",
        mode="shadow",
        places=(here(CPU), here(CPU)),
        device=CPU,
        secret="secret",
        store=address,
        directory=None,
        timeout_s=20.0,
        verify=True,
        generation=1,
        adapter=None,
    )
    client = ReplicaClient(ReplicaInfo(index=0, url=engine), "key")
    results = connect_replicas([client], ours, {0: [worker_of(ours)]}, settings)
    assert results.values == {}
    assert "another plan than the trainer; they first differ in `beta`" in results.failures[0]
    del store
