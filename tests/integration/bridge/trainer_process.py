"""A trainer rank that publishes through the bridge's public calls.

``python -m tests.integration.bridge.trainer_process`` answers each line of JSON, a command, with one line of JSON, and
ends with its standard input.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

import torch
from torch import distributed as dist
from torch import nn

from launcher.bridge.codec import messages
from launcher.bridge.protocol import BridgeRequest
from launcher.bridge.settings import BridgeSettings
from launcher.bridge.trainer.api import Bridge, connect
from launcher.bridge.trainer.replica_client import ReplicaClient
from launcher.common.errors import LauncherError
from tests.integration.bridge.faults import Fault
from tests.integration.bridge.link_process import serve
from tests.integration.bridge.replica_process import memory, written


class TrainerProcess:
    """What this process holds."""

    def __init__(self) -> None:
        self.fault = Fault()
        self.model = nn.Module()
        self.bridge: Bridge | None = None
        self._watch()

    def _watch(self) -> None:
        """Every question to a replica, and every message that is packed, is a place of its own."""
        call, pack = ReplicaClient.call, messages.pack

        def watched_call(client: ReplicaClient, request: BridgeRequest[Any], **words: Any) -> Any:
            self.fault.here(request.operation)
            answer = call(client, request, **words)
            self.fault.here(f"{request.operation} done")
            return answer

        def watched_pack(*words: Any) -> None:
            self.fault.here("sending")
            pack(*words)

        ReplicaClient.call = watched_call  # type: ignore[method-assign]
        messages.pack = watched_pack

    def connect(self, command: dict[str, Any]) -> dict[str, Any]:
        """Makes a module, and a bridge for it."""
        if command["world_size"] > 1 and not dist.is_initialized():
            store = dist.TCPStore("127.0.0.1", command["store"], is_master=False, wait_for_workers=False)
            dist.init_process_group(
                "gloo",
                store=dist.PrefixStore(command["group"], store),
                rank=command["rank"],
                world_size=command["world_size"],
            )
        self.model = nn.Module()
        for name in command["names"]:
            self.model.register_parameter(name, nn.Parameter(written(command["rows"], command["columns"])))
        settings = dict(command["settings"])
        settings["urls"] = tuple(settings["urls"])
        self.bridge = connect(BridgeSettings(**settings))
        return {}

    def publish(self, command: dict[str, Any]) -> dict[str, Any]:
        """Every element of the module becomes the version, which is published."""
        assert self.bridge is not None
        begin = time.monotonic()
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.fill_(command["version"])
        try:
            report = asdict(self.bridge.publish(self.model, version=command["version"]))
        except LauncherError as error:
            report = {"error": f"{type(error).__name__}: {error}"}
        return {**report, "took_s": time.monotonic() - begin}

    def close(self, _command: dict[str, Any]) -> dict[str, Any]:
        """Says goodbye."""
        assert self.bridge is not None
        self.bridge.close()
        return {}

    def set_fault(self, command: dict[str, Any]) -> dict[str, Any]:
        """From now on, this happens to the process."""
        self.fault = Fault(command["at"], command["number"], command.get("count", 0))
        return {}

    def memory(self, _command: dict[str, Any]) -> dict[str, Any]:
        """Bytes now and at most since the last question."""
        return memory(0)


def main() -> None:
    """Serves commands until standard input ends."""
    serve(TrainerProcess())


if __name__ == "__main__":
    main()
