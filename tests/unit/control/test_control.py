"""The control service: who may speak, what is remembered, and which failure counts."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from typing import Any

import pytest

from launcher.common.errors import ControlError
from launcher.common.keys import api_key, bridge_key, control_proof, new_token
from launcher.common.ports import hold_free_port, port_of
from launcher.config import Config, LayoutConfig
from launcher.control.client import ControlClient
from launcher.control.server import ControlServer
from launcher.control.state import ALL_URLS, JobState, Phase, replica_key
from launcher.events.schema import Event
from launcher.events.serialize import event_to_dict
from launcher.layout import Layout, plan
from launcher.preflight.aggregate import Gate
from launcher.preflight.model import Finding, Report

TOKEN = new_token()


def layout(nodes: int = 4, inference_nodes: int = 2) -> Layout:
    return plan(
        Config(layout=LayoutConfig(nodes=nodes, inference_nodes=inference_nodes, gpus_per_node=1, device="cpu"))
    )


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def events() -> list[dict[str, Any]]:
    return []


def into(events: list[dict[str, Any]]) -> Callable[[Event], None]:
    return lambda event: events.append(event_to_dict(event))


@pytest.fixture
def state(events: list[dict[str, Any]]) -> JobState:
    return JobState(layout(), into(events), start_timeout_s=60, lease_timeout_s=10)


@pytest.fixture
def server(state: JobState) -> Iterator[str]:
    sock = hold_free_port("127.0.0.1")
    running = ControlServer(state, sock, TOKEN)
    running.start()
    yield f"127.0.0.1:{port_of(sock)}"
    running.close()
    assert not running._thread.is_alive()


def phase(state: JobState) -> Phase:
    return state.phase


def up(state: JobState) -> None:
    for rank in range(4):
        state.hello(rank, f"host-{rank}", f"10.0.0.{rank}")


def test_the_last_node_to_report_starts_the_run(state: JobState, events: list[dict[str, Any]]) -> None:
    for rank in (2, 0, 3):
        state.hello(rank, f"host-{rank}", "x")
    assert phase(state) is Phase.STARTING
    state.hello(1, "host-1", "x")
    assert phase(state) is Phase.RUNNING
    assert [(e["node_rank"], e["role"], e["role_rank"]) for e in events] == [
        (2, "inference", 0),
        (0, "trainer", 0),
        (3, "inference", 1),
        (1, "trainer", 1),
    ]


def test_the_trainers_end_drains_and_the_last_node_to_leave_finishes(state: JobState) -> None:
    up(state)
    state.node_done(0, 0)
    state.node_done(3, 0)
    assert phase(state) is Phase.RUNNING
    state.node_done(1, 0)
    assert phase(state) is Phase.DRAINING
    for rank in (3, 1, 2):
        state.node_gone(rank)
        assert phase(state) is Phase.DRAINING
    state.node_gone(0)
    assert phase(state) is Phase.FINISHED


def test_the_first_failure_is_the_failure(state: JobState, events: list[dict[str, Any]]) -> None:
    up(state)
    state.fail({"message": "the cause"})
    state.fail({"message": "a consequence"})
    state.cancel("too late")
    assert (state.phase, state.failure) == (Phase.FAILED, {"message": "the cause"})
    assert [(e["message"], e["first"]) for e in events if e["event"] == "failure"] == [
        ("the cause", True),
        ("a consequence", False),
    ]


def test_a_cancelled_run_stays_cancelled(state: JobState) -> None:
    up(state)
    state.cancel("SIGTERM")
    state.fail({"message": "a consequence"})
    assert phase(state) is Phase.CANCELLED


def test_a_silent_node_is_a_failure_that_names_it(events: list[dict[str, Any]]) -> None:
    clock = Clock()
    state = JobState(layout(), into(events), start_timeout_s=60, lease_timeout_s=10, clock=clock)
    up(state)
    clock.now += 9
    for rank in (0, 2, 3):
        state.beat(rank)
    state.tick()
    assert phase(state) is Phase.RUNNING
    clock.now += 2
    state.tick()
    assert phase(state) is Phase.FAILED
    assert state.failure is not None
    assert state.failure["message"] == (
        "trainer on node 1 (host-1): its agent has been silent for 11 s, longer than `lease_timeout_s` (10)."
    )


def gated(events: list[dict[str, Any]], **options: Any) -> JobState:
    gate = Gate([f"node-000{rank}" for rank in range(4)])
    return JobState(
        layout(),
        into(events),
        start_timeout_s=60,
        lease_timeout_s=1000,
        gate=gate,
        **options,
    )


def report(rank: int, *, ok: bool = True) -> Report:
    return Report(node_rank=rank, seconds=0.1, findings=(Finding(name="shm", ok=ok, text="1 GB free"),))


def test_with_a_gate_the_run_starts_when_every_node_has_passed(events: list[dict[str, Any]]) -> None:
    state = gated(events)
    state.preflight(report(2))
    up(state)
    assert phase(state) is Phase.CHECKING
    for rank in (0, 1, 3):
        state.preflight(report(rank))
    assert phase(state) is Phase.RUNNING
    assert [e["ok"] for e in events if e["event"] == "preflight"] == [True] * 4
    assert [e["state"] for e in events if e["event"] == "phase"] == ["begin", "end"]


def test_a_bad_node_ends_the_run_before_it_starts(events: list[dict[str, Any]]) -> None:
    state = gated(events)
    up(state)
    for rank in range(4):
        state.preflight(report(rank, ok=rank != 3))
    assert phase(state) is Phase.FAILED
    assert [bad.node_rank for bad in state.bad_nodes] == [3]
    assert state.failure is not None
    assert state.failure["launcher_exit_code"] == 7
    assert state.failure["tail"][1:] == ["3     node-0003  shm: 1 GB free"]


def test_a_bad_node_may_be_only_reported(events: list[dict[str, Any]]) -> None:
    state = gated(events, bad_nodes_fail=False)
    up(state)
    for rank in range(4):
        state.preflight(report(rank, ok=rank != 3))
    assert phase(state) is Phase.RUNNING
    assert [e["ok"] for e in events if e["event"] == "preflight"] == [True, True, True, False]


def test_a_node_that_never_says_what_it_found_is_bad(events: list[dict[str, Any]]) -> None:
    clock = Clock()
    state = gated(events, check_timeout_s=30, clock=clock)
    up(state)
    for rank in (0, 1, 3):
        state.preflight(report(rank))
    clock.now += 29
    state.tick()
    assert phase(state) is Phase.CHECKING
    clock.now += 2
    state.tick()
    assert phase(state) is Phase.FAILED
    assert [bad.hostname for bad in state.bad_nodes] == ["node-0002"]


def test_a_node_that_left_may_be_silent(events: list[dict[str, Any]]) -> None:
    clock = Clock()
    state = JobState(layout(), into(events), start_timeout_s=60, lease_timeout_s=10, clock=clock)
    up(state)
    state.node_gone(2)
    clock.now += 11
    for rank in (0, 1, 3):
        state.beat(rank)
    state.tick()
    assert phase(state) is Phase.RUNNING


def test_nodes_that_never_report_are_named(events: list[dict[str, Any]]) -> None:
    clock = Clock()
    state = JobState(
        layout(),
        into(events),
        start_timeout_s=60,
        lease_timeout_s=100,
        clock=clock,
    )
    state.hello(0, "host-0", "x")
    state.hello(2, "host-2", "x")
    clock.now += 61
    state.tick()
    assert state.failure is not None
    assert "2 of 4 nodes did not report" in state.failure["message"]
    assert "1 (node-0001), 3 (node-0003)" in state.failure["message"]


def test_the_urls_are_known_when_every_replica_has_said_its_own(state: JobState) -> None:
    state.put(replica_key(1, "url"), "http://b:9000")
    assert ALL_URLS not in state.values
    state.put(replica_key(0, "url"), "http://a:9000")
    assert state.values[ALL_URLS] == ["http://a:9000", "http://b:9000"]
    state.put(replica_key(1, "url"), "http://c:9000")
    assert state.values[ALL_URLS] == ["http://a:9000", "http://c:9000"]


def test_a_value_reaches_who_waits_for_it_at_once(server: str) -> None:
    with closing(ControlClient(server, TOKEN)) as waiting, closing(ControlClient(server, TOKEN)) as putting:
        putting.call("get", keys=[])
        timer = threading.Timer(0.2, putting.put, ("answer", 42))
        timer.start()
        begin = time.monotonic()
        assert waiting.wait_for(["answer"], timeout_s=30, what="the answer") == {"answer": 42}
        assert time.monotonic() - begin < 5
        timer.join()


def test_a_value_that_never_comes_is_an_error_that_names_it(server: str) -> None:
    with (
        closing(ControlClient(server, TOKEN)) as client,
        pytest.raises(ControlError, match=r"Waited 0\.2 s for the store; still missing: trainer/store"),
    ):
        client.wait_for(["trainer/store"], timeout_s=0.2, what="the store")


def test_a_change_of_phase_ends_a_beat_at_once(server: str) -> None:
    with closing(ControlClient(server, TOKEN)) as agent, closing(ControlClient(server, TOKEN)) as other:
        other.call("get", keys=[])
        timer = threading.Timer(0.2, other.call, ("fail",), {"failure": {"message": "boom"}})
        timer.start()
        begin = time.monotonic()
        reply = agent.call("beat", node_rank=0, phase="starting", wait_s=5)
        assert (reply["phase"], reply["failure"]) == ("failed", {"message": "boom"})
        assert time.monotonic() - begin < 4
        timer.join()


def test_another_token_is_refused(server: str, state: JobState) -> None:
    with closing(ControlClient(server, new_token())) as client, pytest.raises(ControlError, match="wrong token"):
        client.call("cancel", reason="not mine")
    assert phase(state) is Phase.STARTING


def test_an_answer_to_one_challenge_is_none_to_the_next(server: str) -> None:
    host, _, port = server.partition(":")

    def handshake(reply: bytes | None) -> tuple[bytes, bytes]:
        with socket.create_connection((host, int(port)), timeout=5) as sock, sock.makefile("rb") as lines:
            nonce = json.loads(lines.readline())["nonce"]
            reply = reply or json.dumps({"answer": control_proof(TOKEN, nonce)}).encode() + b"\n"
            sock.sendall(reply)
            return reply, lines.readline()

    first, said = handshake(None)
    assert json.loads(said) == {"ok": True}
    _, said = handshake(first)
    assert json.loads(said)["ok"] is False


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 50 + b"\n",
        b"[]\n",
        b'"text"\n',
        b'{"answer": null}\n',
        b'{"answer": "\\ud800"}\n',
        b"[" * 100_000 + b"\n",
        b"x" * (2 << 20),
        b"",
    ],
    ids=["http", "tls", "list", "string", "null", "surrogate", "nested", "endless", "nothing"],
)
def test_garbage_on_the_port_disturbs_nobody(server: str, garbage: bytes) -> None:
    host, _, port = server.partition(":")
    with closing(ControlClient(server, TOKEN)) as client:
        client.put("before", 1)
        # The service may close the connection at any point of this.
        with suppress(OSError), socket.create_connection((host, int(port)), timeout=5) as sock:
            sock.sendall(garbage)
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(65536):
                pass
        assert client.call("get", keys=["before"])["values"] == {"before": 1}


@pytest.mark.parametrize(
    ("op", "fields"),
    [
        ("nonsense", {}),
        ("hello", {}),
        ("hello", {"node_rank": 4, "hostname": "x", "address": "x"}),
        ("event", {"event": "step", "fields": 3}),
        ("fail", {"failure": "text"}),
    ],
)
def test_a_bad_request_is_refused_and_the_connection_lives_on(
    server: str, state: JobState, op: str, fields: dict[str, Any]
) -> None:
    with closing(ControlClient(server, TOKEN)) as client:
        with pytest.raises(ControlError, match="refused"):
            client.call(op, **fields)
        assert client.call("get", keys=[])["phase"] == "starting"
    assert phase(state) is Phase.STARTING


def test_a_client_finds_its_way_back_after_its_connection_broke(server: str) -> None:
    with closing(ControlClient(server, TOKEN)) as client:
        client.put("a", 1)
        assert client._sock is not None
        client._sock.shutdown(socket.SHUT_RDWR)
        assert client.call("get", keys=["a"])["values"] == {"a": 1}


def test_a_service_that_does_not_answer_is_an_error_within_the_deadline() -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        with closing(ControlClient(f"127.0.0.1:{deaf.getsockname()[1]}", TOKEN)) as client:
            begin = time.monotonic()
            with pytest.raises(ControlError, match=r"did not answer `get` within 0\.3 s"):
                client.call("get", keys=[], timeout_s=0.3)
            assert time.monotonic() - begin < 3


def test_hundreds_of_agents_learn_of_a_failure_together(server: str) -> None:
    agents = [ControlClient(server, TOKEN) for _ in range(200)]
    replies: list[str] = []

    def beat(client: ControlClient) -> None:
        replies.append(client.call("beat", node_rank=0, phase="starting", wait_s=20, timeout_s=30)["phase"])

    threads = [threading.Thread(target=beat, args=(agent,)) for agent in agents]
    for thread in threads:
        thread.start()
    with closing(ControlClient(server, TOKEN)) as client:
        begin = time.monotonic()
        client.call("fail", failure={"message": "boom"})
    for thread in threads:
        thread.join()
    for agent in agents:
        agent.close()
    assert replies == ["failed"] * 200
    assert time.monotonic() - begin < 10


def test_keys_for_different_purposes_differ_and_none_is_the_token() -> None:
    keys = [
        TOKEN,
        api_key(TOKEN),
        bridge_key(TOKEN),
        control_proof(TOKEN, "n"),
        control_proof(TOKEN, "m"),
        api_key(new_token()),
    ]
    assert len(set(keys)) == len(keys)
    assert not any(TOKEN in key for key in keys[1:])
