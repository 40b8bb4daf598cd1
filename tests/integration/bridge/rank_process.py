"""A trainer rank that runs functions of the tests.

``python -m tests.integration.bridge.rank_process`` answers each line of JSON, a command, with one line of JSON, and
ends with its standard input.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from importlib import import_module
from typing import Any

from torch import distributed as dist

from launcher.bridge.settings import BridgeSettings
from launcher.bridge.trainer.api import Bridge, connect
from tests.integration.bridge.link_process import serve
from tests.integration.bridge.peer_process import PeerProcess, call_all


class RankProcess:
    """What this process holds: its rank, and a bridge."""

    def __init__(self) -> None:
        self.bridge: Bridge | None = None

    def connect(self, command: dict[str, Any]) -> dict[str, Any]:
        """Joins the other ranks, and connects the bridge to the replicas."""
        rank, size = command["rank"], command["size"]
        if not dist.is_initialized():
            store = dist.TCPStore("127.0.0.1", command["store"], is_master=False, wait_for_workers=False)
            dist.init_process_group("gloo", store=dist.PrefixStore(command["group"], store), rank=rank, world_size=size)
        settings = {**command["settings"], "urls": tuple(command["settings"]["urls"])}
        self.bridge = connect(BridgeSettings(**settings))
        return {}

    def run(self, command: dict[str, Any]) -> dict[str, Any]:
        """Calls a function with the bridge, this rank, and arguments; what it returns, or how it failed."""
        function: Callable[..., Any] = getattr(import_module(command["module"]), command["function"])
        begin = time.monotonic()
        try:
            found = {"value": function(self.bridge, dist.get_rank(), *command["args"])}
        except Exception as error:
            found = {"error": f"{type(error).__name__}: {error}"}
        return {**found, "seconds": time.monotonic() - begin}

    def close(self, _command: dict[str, Any]) -> dict[str, Any]:
        """Closes the bridge."""
        if self.bridge is not None:
            self.bridge.close()
        return {}


def main() -> None:
    """Serves commands until standard input ends."""
    serve(RankProcess())


def errors(answers: Sequence[dict[str, Any]]) -> list[str]:
    """How each rank failed."""
    assert all("error" in answer for answer in answers), answers
    return [answer["error"] for answer in answers]


@contextmanager
def rank_group(size: int, url: str, token: str, **settings: Any) -> Iterator[RankGroup]:
    """Some ranks of one trainer, with a bridge to one replica."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, timeout=timedelta(seconds=60), wait_for_workers=False)
    ends = [PeerProcess("tests.integration.bridge.rank_process") for _ in range(size)]
    try:
        for rank, end in enumerate(ends):
            given = {"urls": [url], "token": token, "timeout_s": 60.0, **settings}
            end.send_command("connect", rank=rank, size=size, store=store.port, group="trainers", settings=given)
        assert [end.next_answer() for end in ends] == [{}] * size
        yield RankGroup(ends)
        # The replica, in threads of the test, closes its ends as well.
        assert call_all([end for end in ends if end.is_sound], "close") == [{}] * size
    finally:
        for end in ends:
            end.end()


class RankGroup:
    """The ranks, as a test holds them."""

    def __init__(self, ends: Sequence[PeerProcess]) -> None:
        self._ends = ends

    def run(self, function: Callable[..., Any], *args: Any, ranks: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """Has ranks (all if None) call a function of a module; what each returned, or how it failed."""
        chosen = [self._ends[rank] for rank in (range(len(self._ends)) if ranks is None else ranks)]
        for end in chosen:
            end.send_command("run", module=function.__module__, function=function.__name__, args=args)
        return [end.next_answer() for end in chosen]

    def close(self, rank: int) -> None:
        """Has one rank close its bridge."""
        assert self._ends[rank].call("close") == {}
