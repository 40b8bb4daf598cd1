"""The other end of a bridge's group, in a process that a test can kill: ``python -m tests.gpu.peer ROLE STORE ...``

It takes one JSON command a line and answers each with one JSON line.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
from torch import distributed as dist

from launcher.bridge.groups import finish, init_process_group, meet
from launcher.bridge.manifest import from_json
from launcher.bridge.receiver import Receiver


def content(tensor: torch.Tensor) -> str:
    """Digest of a tensor's bytes."""
    return hashlib.sha256(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


def receiver(options: argparse.Namespace) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """An engine worker's end."""
    end = Receiver(
        manifest=from_json(json.loads(options.manifest)),
        backend=options.backend,
        group=options.group,
        store=options.store,
        rank=1,
        world_size=2,
        device=torch.device(options.device),
        address="127.0.0.1",
        timeout_s=options.timeout_s,
    )

    def answer(command: dict[str, Any]) -> dict[str, Any]:
        match command["do"]:
            case "prepare":
                end.prepare(command["version"], command["names"])
            case "wait":
                deadline = time.monotonic() + 60
                while end.status()["state"] == "receiving" and time.monotonic() < deadline:
                    time.sleep(0.005)
                return end.status()
            case "take":
                return {name: content(tensor) for name, tensor in end.take(command["version"])}
            case "close":
                end.close()
        return {}

    return answer


def sender(options: argparse.Namespace) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A trainer's end."""
    timeout = timedelta(seconds=options.timeout_s)
    host, _, port = options.store.rpartition(":")
    store = dist.TCPStore(host, int(port), is_master=False, timeout=timeout, wait_for_workers=False)
    device = torch.device(options.device)
    group = init_process_group(
        options.backend,
        timeout=timeout,
        world_size=2,
        rank=0,
        store=store,
        group_name=options.group,
        address="127.0.0.1",
        device=device,
    )
    meet(group, device, options.timeout_s)

    def answer(command: dict[str, Any]) -> dict[str, Any]:
        tensor = torch.ones(command["shape"], device=device)
        finish(group.broadcast(tensor, 0), time.monotonic() + options.timeout_s, "sending")
        return {"tensor": content(tensor)}

    return answer


def main() -> None:
    """Joins, says so, and serves commands until standard input ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=["receiver", "sender"])
    parser.add_argument("store")
    parser.add_argument("--backend", required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--group", required=True)
    parser.add_argument("--manifest", default="[]")
    parser.add_argument("--timeout-s", type=float, default=30.0)
    options = parser.parse_args()
    answer = (receiver if options.role == "receiver" else sender)(options)
    print(json.dumps({"joined": True}), flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
