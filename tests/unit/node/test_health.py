"""An engine's health: well, silent, or gone."""

from __future__ import annotations

import http.server
import socket
import threading
import time
from collections.abc import Callable

from launcher.node.health import Health, HealthMonitor, get_health


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers with the server's ``code``."""

    def do_GET(self) -> None:
        self.send_response(self.server.code)  # type: ignore[attr-defined]
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_an_engine_that_is_well_dies_and_closes_its_port() -> None:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.code = 200  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    health = HealthMonitor(f"http://127.0.0.1:{server.server_port}")
    wait_until(lambda: health.is_ready)
    assert health.refused_s() == 0.0
    server.code = 503  # type: ignore[attr-defined]
    wait_until(lambda: health.refused_s() > 0.0)
    server.code = 200  # type: ignore[attr-defined]
    wait_until(lambda: health.refused_s() == 0.0)
    server.shutdown()
    server.server_close()
    wait_until(lambda: health.refused_s() > 0.0)
    health.close()


def test_a_closed_port_is_a_refusal() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        assert get_health(f"http://127.0.0.1:{closed.getsockname()[1]}") is Health.REFUSED
