"""A trainer for the tests: one engine gets many versions by each of several transports while requests never cease.

``LAUNCHER_TOKEN=... python -m tests.integration.gpu.load_program OUT.json URL MODEL UPDATES TRANSPORT...``; ``their
nccl`` and
``their ipc`` among the transports stand for vLLM's own weight transfers. After each of them the engine gets the weights
again that it was started with: its answers must then be those that it gave when it had just loaded them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from launcher import bridge
from launcher.bridge.settings import BridgeSettings
from launcher.common.keys import api_key, token_from_environment
from tests.integration.engine.load_program import asked, device, publish_all, write
from tests.integration.engine.questions import greedy

CLIENTS = 16
THEIR_NCCL, THEIR_IPC = "their nccl", "their ipc"
TIMEOUT_S = 60.0


def ours(
    transport: str, url: str, model: torch.nn.Module, loaded: dict[str, torch.Tensor], versions: range
) -> dict[str, list[Any]]:
    """The versions by one transport; the last one is the loaded weights, and comes in peace."""
    token = token_from_environment()
    connection = bridge.connect(BridgeSettings(urls=(url,), token=token, transport=transport, timeout_s=TIMEOUT_S))
    write(model, versions[0])
    connection.publish(model, version=versions[0])
    with asked(url, api_key(token), CLIENTS) as seen:
        reported = publish_all(connection, model, versions[1:-1])
    model.load_state_dict(loaded)
    connection.publish(model, version=versions[-1])
    connection.close()
    return seen | reported


def theirs(
    transport: str, url: str, model: torch.nn.Module, loaded: dict[str, torch.Tensor], versions: range
) -> dict[str, list[Any]]:
    """The same by vLLM's own engine, under the same load; of which version an answer is, nobody knows."""
    from tests.integration.gpu.theirs import TheirIpc, TheirNccl

    key = api_key(token_from_environment())
    transfer = {THEIR_NCCL: TheirNccl, THEIR_IPC: TheirIpc}[transport](url, key, model)
    transfer.publish()
    measured = []
    with asked(url, key, CLIENTS) as seen:
        for version in versions[1:-1]:
            write(model, version)
            measured.append(transfer.publish())
    model.load_state_dict(loaded)
    transfer.publish()
    transfer.close()
    return seen | {"seconds": [seconds for seconds, _ in measured], "pauses": [pause for _, pause in measured]}


def main(out: Path, url: str, path: Path, updates: int, transports: list[str]) -> None:
    """The one rank; after every transport it writes down what it has so far."""
    from launcher.trainers.grpo.hf import load_causal_lm  # here, because whoever only needs the rest starts sooner

    model = load_causal_lm(path, torch.bfloat16).to(device())
    loaded = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    key = api_key(token_from_environment())
    facts: dict[str, Any] = {"loaded": greedy(url, key)}
    for number, transport in enumerate(transports):
        versions = range(number * (updates + 2), (number + 1) * (updates + 2))
        way = theirs if transport in (THEIR_NCCL, THEIR_IPC) else ours
        found = way(transport, url, model, loaded, versions)
        facts[transport] = {**found, "after": greedy(url, key)}
        out.write_text(json.dumps(facts))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]), sys.argv[5:])
