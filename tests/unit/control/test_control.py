"""The control service: which clients it accepts, what it keeps, and which failure counts."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from typing import Any

import pytest

from launcher.common.errors import ControlError
from launcher.common.keys import api_key, bridge_key, control_proof, new_token
from launcher.common.ports import hold_free_port, port_of
from launcher.config import Config, LayoutConfig
from launcher.control.client import ControlClient
from launcher.control.model import ALL_URLS, Phase, url_key
from launcher.control.preflight_report import Finding, PreflightReport, PreflightResult
from launcher.control.protocol import (
    OPERATIONS,
    CancelRequest,
    FailRequest,
    GetRequest,
    HeartbeatRequest,
    HelloRequest,
    PoolRequest,
)
from launcher.control.server import ControlServer
from launcher.control.state import ControlSettings, ControlState, new_state
from launcher.control.transitions import TRANSITIONS, Tick
from launcher.events.schema import FailureReported
from launcher.layout import Layout, plan
from tests.unit.control.driven import DrivenRun

TOKEN = new_token()


def layout(nodes: int = 4, inference_nodes: int = 2) -> Layout:
    return plan(
        Config(layout=LayoutConfig(nodes=nodes, inference_nodes=inference_nodes, gpus_per_node=1, device="cpu"))
    )


@pytest.fixture
def run() -> DrivenRun:
    return driven()


@pytest.fixture
def state() -> ControlState:
    return new_state(ControlSettings(layout=layout(), start_timeout_s=60, lease_timeout_s=10), time.monotonic())


@pytest.fixture
def server(state: ControlState) -> Iterator[str]:
    sock = hold_free_port("127.0.0.1")
    running = ControlServer(state, sock, TOKEN, log=lambda event: None)
    running.start()
    yield f"127.0.0.1:{port_of(sock)}"
    running.close()
    assert not running._thread.is_alive()


def driven(*, lease_timeout_s: float = 10, **settings: Any) -> DrivenRun:
    return DrivenRun(
        ControlSettings(layout=layout(), start_timeout_s=60, lease_timeout_s=lease_timeout_s, **settings), now=100.0
    )


def up(run: DrivenRun) -> None:
    for rank in range(4):
        run.hello(rank, f"host-{rank}", f"10.0.0.{rank}")


def test_the_last_node_to_report_starts_the_run(run: DrivenRun) -> None:
    for rank in (2, 0, 3):
        run.hello(rank, f"host-{rank}", "x")
    assert run.phase is Phase.STARTING
    run.hello(1, "host-1", "x")
    assert run.phase is Phase.RUNNING
    assert [(e["node_rank"], e["role"], e["role_rank"]) for e in run.events] == [
        (2, "inference", 0),
        (0, "trainer", 0),
        (3, "inference", 1),
        (1, "trainer", 1),
    ]


def test_the_trainers_end_drains_and_the_last_node_to_leave_finishes(run: DrivenRun) -> None:
    up(run)
    run.trainers_done(0, 0)
    run.trainers_done(3, 0)
    assert run.phase is Phase.RUNNING
    run.trainers_done(1, 0)
    assert run.phase is Phase.DRAINING
    for rank in (3, 1, 2):
        run.node_left(rank)
        assert run.phase is Phase.DRAINING
    run.node_left(0)
    assert run.phase is Phase.FINISHED


def test_the_first_failure_is_the_failure(run: DrivenRun) -> None:
    up(run)
    run.fail(FailureReported(message="the cause"))
    run.fail(FailureReported(message="a consequence"))
    run.cancel("too late")
    assert (run.phase, run.state.failure) == (Phase.FAILED, FailureReported(message="the cause"))
    assert [(e["message"], e["first"]) for e in run.events if e["event"] == "failure"] == [
        ("the cause", True),
        ("a consequence", False),
    ]


def test_a_cancelled_run_stays_cancelled(run: DrivenRun) -> None:
    up(run)
    run.cancel("SIGTERM")
    run.fail(FailureReported(message="a consequence"))
    assert run.phase is Phase.CANCELLED


def test_a_silent_node_is_a_failure_that_names_it() -> None:
    run = driven(lease_timeout_s=10)
    up(run)
    run.now += 9
    for rank in (0, 2, 3):
        run.heartbeat(rank)
    run.tick()
    assert run.phase is Phase.RUNNING
    run.now += 2
    run.tick()
    assert run.phase is Phase.FAILED
    assert run.state.failure is not None
    assert run.state.failure.message == (
        "trainer on node 1 (host-1): its agent has been silent for 11 s, longer than `lease_timeout_s` (10)."
    )


def with_preflight(**settings: Any) -> DrivenRun:
    return driven(lease_timeout_s=1000, has_preflight=True, **settings)


def report(rank: int, *, ok: bool = True) -> PreflightReport:
    return PreflightReport(node_rank=rank, seconds=0.1, findings=(Finding(name="shm", ok=ok, text="1 GB free"),))


def test_with_a_gate_the_run_starts_when_every_node_has_passed() -> None:
    run = with_preflight()
    run.preflight(report(2))
    up(run)
    assert run.phase is Phase.CHECKING
    for rank in (0, 1, 3):
        run.preflight(report(rank))
    assert run.phase is Phase.RUNNING
    assert [e["ok"] for e in run.events if e["event"] == "preflight"] == [True] * 4
    assert [e["state"] for e in run.events if e["event"] == "phase"] == ["begin", "end"]


def test_a_bad_node_ends_the_run_before_it_starts() -> None:
    run = with_preflight()
    up(run)
    for rank in range(4):
        run.preflight(report(rank, ok=rank != 3))
    assert run.phase is Phase.FAILED
    assert [bad.node_rank for bad in run.state.preflight.bad_nodes] == [3]
    assert run.state.failure is not None
    assert run.state.failure.launcher_exit_code == 7
    assert run.state.failure.tail[1:] == ["3     node-0003  shm: 1 GB free"]


def test_a_bad_node_may_be_only_reported() -> None:
    run = with_preflight(bad_nodes_fail=False)
    up(run)
    for rank in range(4):
        run.preflight(report(rank, ok=rank != 3))
    assert run.phase is Phase.RUNNING
    assert [e["ok"] for e in run.events if e["event"] == "preflight"] == [True, True, True, False]


def test_a_node_that_never_says_what_it_found_is_bad() -> None:
    run = with_preflight(preflight_timeout_s=30)
    up(run)
    for rank in (0, 1, 3):
        run.preflight(report(rank))
    run.now += 29
    run.tick()
    assert run.phase is Phase.CHECKING
    run.now += 2
    run.tick()
    assert run.phase is Phase.FAILED
    assert [bad.hostname for bad in run.state.preflight.bad_nodes] == ["node-0002"]


def test_a_node_that_left_may_be_silent() -> None:
    run = driven(lease_timeout_s=10)
    up(run)
    run.node_left(2)
    run.now += 11
    for rank in (0, 1, 3):
        run.heartbeat(rank)
    run.tick()
    assert run.phase is Phase.RUNNING


def test_nodes_that_never_report_are_named() -> None:
    run = driven(lease_timeout_s=100)
    run.hello(0, "host-0", "x")
    run.hello(2, "host-2", "x")
    run.now += 61
    run.tick()
    assert run.state.failure is not None
    assert "2 of 4 nodes did not report" in run.state.failure.message
    assert "1 (node-0001), 3 (node-0003)" in run.state.failure.message


def test_the_urls_are_known_when_every_replica_has_said_its_own(run: DrivenRun) -> None:
    run.put(url_key(1), "http://b:9000")
    assert ALL_URLS not in run.state.values
    run.put(url_key(0), "http://a:9000")
    assert run.state.values[ALL_URLS] == ["http://a:9000", "http://b:9000"]
    run.put(url_key(1), "http://c:9000")
    assert run.state.values[ALL_URLS] == ["http://a:9000", "http://c:9000"]


def test_a_value_reaches_who_waits_for_it_at_once(server: str) -> None:
    with closing(ControlClient(server, TOKEN)) as waiting, closing(ControlClient(server, TOKEN)) as putting:
        putting.status()
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


def test_a_change_of_phase_answers_a_heartbeat_at_once(server: str) -> None:
    with closing(ControlClient(server, TOKEN)) as agent, closing(ControlClient(server, TOKEN)) as other:
        other.status()
        timer = threading.Timer(0.2, other.call, (FailRequest(failure=FailureReported(message="boom")),))
        timer.start()
        begin = time.monotonic()
        reply = agent.call(HeartbeatRequest(node_rank=0, phase=Phase.STARTING, wait_s=5))
        assert (reply.phase, reply.failure) == (Phase.FAILED, FailureReported(message="boom"))
        assert time.monotonic() - begin < 4
        timer.join()


def test_another_token_is_refused(server: str, state: ControlState) -> None:
    with closing(ControlClient(server, new_token())) as client, pytest.raises(ControlError, match="wrong token"):
        client.call(CancelRequest(reason="not mine"))
    assert state.phase is Phase.STARTING


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
        assert client.get("before") == {"before": 1}


class RawClient:
    """Speaks the protocol without its types."""

    def __init__(self, address: str) -> None:
        host, _, port = address.partition(":")
        self._sock = socket.create_connection((host, int(port)), timeout=5)
        self._lines = self._sock.makefile("rb")
        nonce = json.loads(self._lines.readline())["nonce"]
        assert self.send({"answer": control_proof(TOKEN, nonce)}) == {"ok": True}

    def send(self, message: Any) -> Any:
        self._sock.sendall(json.dumps(message).encode() + b"\n")
        return json.loads(self._lines.readline())

    def close(self) -> None:
        self._lines.close()
        self._sock.close()


@pytest.mark.parametrize(
    ("op", "fields"),
    [
        ("nonsense", {}),
        ("hello", {}),
        ("hello", {"node_rank": 4, "hostname": "x", "address": "x"}),
        ("hello", {"node_rank": -1, "hostname": "x", "address": "x"}),
        ("event", {"event": "step", "fields": 3}),
        ("fail", {"failure": "text"}),
        ("engine_ready", {"replica": 2, "restart_count": 0, "url": "x", "seconds": 1}),
        ("published", {"restart_count": 0, "version": 1, "replicas": {"7": 0}}),
    ],
)
def test_a_bad_request_is_refused_and_the_connection_lives_on(
    server: str, state: ControlState, op: str, fields: dict[str, Any]
) -> None:
    with closing(RawClient(server)) as client:
        reply = client.send({"op": op, **fields})
        assert reply["ok"] is False
        assert reply["error"].startswith("bad request: ")
        assert client.send({"op": "get", "keys": []})["phase"] == "starting"
    assert state.phase is Phase.STARTING


def test_a_refusal_is_an_error_at_the_client(server: str) -> None:
    with closing(ControlClient(server, TOKEN)) as client:
        with pytest.raises(ControlError, match=r"refused `hello`: bad request: IndexError\('no node 4 among 4'\)"):
            client.call(HelloRequest(node_rank=4, hostname="x", address="x"))
        assert client.status().phase is Phase.STARTING


def test_a_client_finds_its_way_back_after_its_connection_broke(server: str) -> None:
    with closing(ControlClient(server, TOKEN)) as client:
        client.put("a", 1)
        assert client._sock is not None
        client._sock.shutdown(socket.SHUT_RDWR)
        assert client.get("a") == {"a": 1}


def test_a_service_that_does_not_answer_is_an_error_within_the_deadline() -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        with closing(ControlClient(f"127.0.0.1:{deaf.getsockname()[1]}", TOKEN)) as client:
            begin = time.monotonic()
            with pytest.raises(ControlError, match=r"did not answer `get` within 0\.3 s"):
                client.status(timeout_s=0.3)
            assert time.monotonic() - begin < 3


def test_another_service_on_the_port_is_an_error_that_says_so() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()

        def greet() -> None:
            connection, _ = other.accept()
            with connection:
                connection.sendall(b"220 mail.example ESMTP\r\n")

        greeter = threading.Thread(target=greet)
        greeter.start()
        with (
            closing(ControlClient(f"127.0.0.1:{other.getsockname()[1]}", TOKEN)) as client,
            pytest.raises(ControlError, match="does not follow the control service's protocol"),
        ):
            client.status(timeout_s=5)
        greeter.join()


def test_hundreds_of_agents_learn_of_a_failure_together(server: str) -> None:
    agents = [ControlClient(server, TOKEN) for _ in range(200)]
    replies: list[str] = []

    def beat(client: ControlClient) -> None:
        replies.append(client.call(HeartbeatRequest(node_rank=0, phase=Phase.STARTING, wait_s=20), timeout_s=30).phase)

    threads = [threading.Thread(target=beat, args=(agent,)) for agent in agents]
    for thread in threads:
        thread.start()
    with closing(ControlClient(server, TOKEN)) as client:
        begin = time.monotonic()
        client.call(FailRequest(failure=FailureReported(message="boom")))
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


def test_every_operation_changes_the_state_or_only_reads_it() -> None:
    requests = {request for request, _ in OPERATIONS.values()}
    assert requests - set(TRANSITIONS) == {GetRequest, PoolRequest}
    assert set(TRANSITIONS) - requests == {Tick, PreflightResult}
