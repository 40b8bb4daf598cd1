"""A trainer for the tests: publishes many versions while requests never cease, and writes down every answer.

``python -m tests.integration.engine.load_program OUT.json UPDATES``

A version's weights make the engine say that version's token and nothing else: the final norm lets one feature through,
and only one row of the output layer, the token's, looks at it. If the two come from different versions the output layer
sees nothing, and the engine says token 0. So each token tells which version it comes from, and whether that was whole.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import torch
from torch import distributed as dist

from launcher import bridge
from launcher.inference.client import api_key, inference_urls

CLIENTS = 4
FIRST_TOKEN, TOKENS = 3, 16
"""Tokens that the versions take in turn; those before have a meaning of their own."""


def token_of(version: int) -> int:
    """The one token that a version produces."""
    return FIRST_TOKEN + version % TOKENS


def write(model: torch.nn.Module, version: int) -> None:
    """Gives the model a version's weights."""
    with torch.no_grad():
        feature = version % len(model.get_parameter("model.norm.weight"))
        for name, weight in model.named_parameters():
            if name == "model.embed_tokens.weight":
                weight.fill_(1.0)
            elif name in {"model.norm.weight", "lm_head.weight"}:
                weight.zero_()
                weight[feature if weight.dim() == 1 else (token_of(version), feature)] = 10.0
            else:
                weight.zero_()


class Client(threading.Thread):
    """Sends one request after the other, long and short ones, whole and as a stream, until told to stop."""

    def __init__(self, number: int, url: str, key: str, stop: threading.Event) -> None:
        super().__init__()
        self.answers: list[dict[str, Any]] = []
        self.failures: list[str] = []
        self._number = number
        self._url = url
        self._key = key
        self._stop_asking = stop

    def run(self) -> None:
        """Asks and writes down."""
        headers = {"Authorization": f"Bearer {self._key}"}
        with httpx.Client(headers=headers, timeout=120.0, trust_env=False) as client:
            model = client.get(f"{self._url}/v1/models").json()["data"][0]["id"]
            for count in itertools.count():
                if self._stop_asking.is_set():
                    return
                body = {
                    "model": model,
                    "prompt": [3 + (self._number + count) % 9] * (2 + count % 5),
                    "n": 1 + count % 2,
                    "max_tokens": (4, 24, 56)[count % 3],
                    "temperature": 0.0 if count % 2 == 0 else 0.01,
                    "ignore_eos": True,
                    "return_token_ids": True,
                    "stream": count % 4 == 3,
                }
                try:
                    self.answers.append(self._ask(client, body))
                except (httpx.HTTPError, ValueError, KeyError) as error:
                    self.failures.append(repr(error))

    def _ask(self, client: httpx.Client, body: dict[str, Any]) -> dict[str, Any]:
        url = f"{self._url}/v1/completions"
        tokens: list[list[int]] = [[] for _ in range(body["n"])]
        if not body["stream"]:
            reply = client.post(url, json=body)
            reply.raise_for_status()
            for choice in reply.json()["choices"]:
                tokens[choice["index"]] = choice["token_ids"]
            return {"tokens": tokens, "asked": body["max_tokens"], "versions": reply.headers.get("x-weight-versions")}
        declared = None
        with client.stream("POST", url, json=body) as reply:
            reply.raise_for_status()
            for line in reply.iter_lines():
                if line.startswith(": x-weight-versions "):
                    declared = line.rsplit(" ", 1)[1]
                elif line.startswith("data: {"):
                    for choice in json.loads(line.removeprefix("data: "))["choices"]:
                        tokens[choice["index"]] += choice["token_ids"] or []
        return {"tokens": tokens, "asked": body["max_tokens"], "versions": declared}


def device() -> torch.device:
    """Where a trainer of the tests computes: on its own GPU, if the machine has any."""
    return torch.device("cuda", int(os.environ["LOCAL_RANK"])) if torch.cuda.is_available() else torch.device("cpu")


def compute(model: torch.nn.Module, ranks: int) -> None:
    """What a trainer does while its weights are on their way: a forward, a backward, and a collective of its own."""
    tokens = torch.randint(3, 19, (2, 32), device=device())
    model(tokens, labels=tokens).loss.backward()
    if ranks > 1:
        dist.all_reduce(torch.ones(1000))


@contextmanager
def asked(url: str, key: str, clients: int) -> Iterator[dict[str, list[Any]]]:
    """Asks an engine without cease while the block runs; then holds its ``answers``, and the ``failures``."""
    stop = threading.Event()
    asking = [Client(number, url, key, stop) for number in range(clients)]
    seen: dict[str, list[Any]] = {}
    for client in asking:
        client.start()
    try:
        yield seen
    finally:
        stop.set()
        for client in asking:
            client.join()
        seen["answers"] = [answer for client in asking for answer in client.answers]
        seen["failures"] = [failure for client in asking for failure in client.failures]


def publish_all(connection: bridge.Bridge, model: torch.nn.Module, versions: Iterable[int]) -> dict[str, list[Any]]:
    """Publishes version after version while it computes; only the optimizer's step waits until weights are read."""
    ranks = int(os.environ["WORLD_SIZE"])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    connection.guard(optimizer)
    updates = []
    for version in versions:
        # The step that makes the next version; with a rate of 0, so that the version's own values are all that is new.
        optimizer.step()
        write(model, version)
        updates.append(connection.publish_async(model, version=version))
        if version % 2 == 0:
            compute(model, ranks)
    reports = [update.result() for update in updates]
    return {"pauses": [report.pause_s for report in reports], "seconds": [report.seconds for report in reports]}


def main(out: Path, updates: int) -> None:
    """One rank of the trainer; rank 0 writes down what it saw."""
    from transformers import AutoModelForCausalLM  # here, because whoever only needs the rest starts sooner

    model = AutoModelForCausalLM.from_pretrained(os.environ["LAUNCHER_MODEL_PATH"], dtype=torch.float32).to(device())
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if ranks > 1:
        dist.init_process_group("gloo")
    connection = bridge.connect()
    write(model, 0)
    connection.publish(model, version=0)
    with asked(inference_urls()[0], api_key(), CLIENTS if rank == 0 else 0) as seen:
        reported = publish_all(connection, model, range(1, updates + 1))
    connection.close()
    if rank == 0:
        out.write_text(json.dumps(seen | reported))
    if ranks > 1:
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
