"""A site's HTTP proxy sees none of the requests that processes of a job send to each other, nor their keys."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from launcher.bridge.protocol import Abort
from launcher.bridge.trainer.discovery import ReplicaInfo
from launcher.bridge.trainer.replica_client import ReplicaClient
from launcher.common import http
from launcher.node.health import Health, get_health
from launcher.testing.chaos import client as chaos_client
from launcher.trainers.grpo.rollout import Engines

VARIABLES = ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")


class Listener(ThreadingHTTPServer):
    """Answers every request with the same JSON, and keeps what it was sent."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.seen: list[tuple[str, str | None]] = []
        """Request line and ``Authorization`` of each request."""

        self.connections: set[Any] = set()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Listener
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answers."""
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.seen.append((self.requestline, self.headers.get("Authorization")))
        self.server.connections.add(self.client_address)
        content = json.dumps({"data": [{"id": "model"}], "version": 3}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        """Prints nothing."""


@contextmanager
def listening() -> Iterator[Listener]:
    with Listener() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Listener]:
    """The proxy that the environment names for everything."""
    with listening() as found:
        for name in VARIABLES:
            monkeypatch.setenv(name, found.url)
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        yield found


@pytest.fixture
def engine() -> Iterator[Listener]:
    """A node of the job."""
    with listening() as found:
        yield found


def bridge(url: str) -> None:
    client = ReplicaClient(ReplicaInfo(index=0, url=url), "the bridge's key")
    client.call(Abort(), timeout_s=30.0)


def health(url: str) -> None:
    assert get_health(f"{url}/health") is Health.HEALTHY


def rollout(url: str) -> None:
    Engines([url], "the API key", timeout_s=30.0).close()


def chaos(url: str) -> None:
    chaos_client._versions(url)


@pytest.mark.parametrize("call", [bridge, health, rollout, chaos])
def test_requests_inside_a_job_never_go_through_a_proxy(
    proxy: Listener, engine: Listener, call: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAUNCHER_INFERENCE_API_KEY", "the API key")
    call(engine.url)
    assert proxy.seen == []
    assert engine.seen
    assert all(not line.split()[1].startswith("http") for line, _ in engine.seen)


def test_requests_one_after_the_other_share_a_connection(engine: Listener) -> None:
    for _ in range(5):
        assert http.request("POST", f"{engine.url}/bridge/info", body=b"{}", key="k", timeout_s=30.0).status == 200
    assert len(engine.connections) == 1
    assert {key for _, key in engine.seen} == {"Bearer k"}


def test_an_answer_that_trickles_is_an_error_at_the_deadline() -> None:
    """Each byte comes in time, and the whole never does."""
    import socket
    import time

    stop = threading.Event()

    def trickle(server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
            while not stop.wait(0.05):
                try:
                    connection.sendall(b"x")
                except OSError:
                    return

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=trickle, args=(server,))
        thread.start()
        begin = time.monotonic()
        with pytest.raises(http.HttpError, match=r"not complete after 0\.5 s"):
            http.request("GET", f"http://127.0.0.1:{server.getsockname()[1]}/", timeout_s=0.5)
        stop.set()
        thread.join()
        assert time.monotonic() - begin < 30.0
