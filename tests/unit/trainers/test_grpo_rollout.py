"""The client of the engines against an HTTP server that answers as told."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from launcher.trainers.grpo.rollout import Engines, RolloutError

Answer = Callable[[dict[str, Any]], tuple[int, Any]]


class Server(ThreadingHTTPServer):
    """Serves one model; ``answer`` maps a completion request's body to status and reply."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer = answer
        self.bodies: list[dict[str, Any]] = []
        self.released = threading.Event()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has hung up is part of the test."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        self._reply(200, {"data": [{"id": "/models/tiny"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.headers["Authorization"] == "Bearer key"
        self.server.bodies.append(body)
        self._reply(*self.server.answer(body))

    def _reply(self, status: int, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Silence."""


@pytest.fixture
def serve() -> Iterator[Callable[[Answer], Server]]:
    servers: list[Server] = []

    def start(answer: Answer) -> Server:
        server = Server(answer)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return server

    yield start
    for server in servers:
        server.released.set()
        server.shutdown()
        server.server_close()


def echo(body: dict[str, Any]) -> tuple[int, Any]:
    """The prompt's first token as many times as samples are asked for, in the wrong order."""
    first = body["prompt"][0]
    choices = [
        {
            "index": index,
            "token_ids": [first, index],
            "finish_reason": "stop" if index else "length",
            "logprobs": {"token_logprobs": [-1.0, -2.0], "top_logprobs": [{f"token_id:{first}": -1.0}, {}]},
        }
        for index in reversed(range(body["n"]))
    ]
    return 200, {"choices": choices}


def sample(engines: Engines, count: int = 4) -> list[list[Any]]:
    prompts = [[10 + index] for index in range(count)]
    return engines.sample(prompts, samples=2, max_tokens=2, temperature=0.7, seed=1)


def test_engines_take_turns_and_answers_keep_their_order(serve: Callable[[Answer], Server]) -> None:
    servers = [serve(echo), serve(echo)]
    with Engines([server.url for server in servers], "key", timeout_s=20) as engines:
        groups = sample(engines)
    assert [[completion.token_ids for completion in group] for group in groups] == [
        [(first, 0), (first, 1)] for first in (10, 11, 12, 13)
    ]
    assert [completion.answer_ids() for completion in groups[0]] == [(10, 0), (10,)]
    assert groups[0][0].top[0] == {10: -1.0}
    assert [sorted(body["prompt"][0] for body in server.bodies) for server in servers] == [[10, 12], [11, 13]]
    bodies = [body for server in servers for body in server.bodies]
    assert len({body["seed"] for body in bodies}) == 4
    assert {(body["model"], body["temperature"], body["top_p"], body["top_k"]) for body in bodies} == {
        ("/models/tiny", 0.7, 1.0, 0)
    }


def test_a_refusal_is_told_with_the_engines_own_words(serve: Callable[[Answer], Server]) -> None:
    server = serve(lambda _: (400, {"error": {"message": "maximum context length is 64 tokens"}}))
    refused = pytest.raises(RolloutError, match=r"answered 400: .*maximum context length is 64 tokens")
    with Engines([server.url], "key", timeout_s=20) as engines, refused:
        sample(engines)


def test_too_few_answers_are_an_error(serve: Callable[[Answer], Server]) -> None:
    server = serve(lambda body: echo({**body, "n": 1}))
    refused = pytest.raises(RolloutError, match="answered with 1 completions, not the 2 asked for")
    with Engines([server.url], "key", timeout_s=20) as engines, refused:
        sample(engines)


def test_a_hung_engine_is_an_error_at_the_deadline(serve: Callable[[Answer], Server]) -> None:
    server = serve(lambda body: (server.released.wait(60), echo(body))[1])
    refused = pytest.raises(RolloutError, match=r"did not answer within `trainer.options.request_timeout_s` \(0.5\)")
    with Engines([server.url], "key", timeout_s=0.5) as engines, refused:
        sample(engines)


def test_an_engine_that_is_gone_is_an_error() -> None:
    with pytest.raises(RolloutError, match="cannot be reached"):
        Engines(["http://127.0.0.1:1"], "key", timeout_s=5)
