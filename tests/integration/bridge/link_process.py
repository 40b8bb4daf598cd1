"""One end of one wire, in a process that a test can stop and kill: ``python -m tests.integration.bridge.link_process``

It takes one JSON command a line and answers each with one JSON line; it ends with its standard input.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import resource
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from launcher.bridge.transport.base import Meeting, RecvWire, SendWire, Transfer
from launcher.bridge.transport.links import connect_receivers, connect_senders
from launcher.common.errors import BridgeError

WINDOW = 3
"""Messages that a sender has on their way at a time."""


def meeting_of(command: Mapping[str, Any]) -> Meeting:
    """Where a test's ends meet."""
    return Meeting(
        group=command["group"],
        secret=command.get("secret", "secret"),
        store=command["store"],
        address="127.0.0.1",
        directory=Path(command["directory"]) if command.get("directory") else None,
        timeout_s=command["timeout_s"],
    )


def ways_of(command: Mapping[str, Any]) -> tuple[str, ...]:
    """The transports of a wire in turn, as in ``shm,gloo``."""
    return tuple(command["transport"].split(","))


def pattern(number: int, nbytes: int) -> torch.Tensor:
    """A message's bytes: other ones for each number."""
    block = (torch.arange(1021) * 131 + number * 29 + nbytes).to(torch.uint8)
    return block.repeat(nbytes // 1021 + 1)[:nbytes]


def say(line: Mapping[str, Any]) -> None:
    """One line to the test."""
    print(json.dumps(line), flush=True)


def serve(end: Any) -> None:
    """Answers every command with the method of its name, until standard input ends."""
    torch.set_num_threads(1)
    say({"ready": True})
    for line in sys.stdin:
        command = json.loads(line)
        say(getattr(end, command["do"])(command))
    # At once: a thread of the bridge may still wait for somebody.
    os._exit(0)


class LinkProcess:
    """What this process holds."""

    def __init__(self) -> None:
        self.wire: SendWire | RecvWire | None = None
        self.device = torch.device("cpu")
        self.unpickled = 0

    def join(self, command: dict[str, Any]) -> dict[str, Any]:
        """Connects its end."""
        self.device = torch.device(command["device"])
        meeting, transports = meeting_of(command), {0: ways_of(command)}
        if command["role"] == "sender":
            self.wire = connect_senders(meeting, 0, transports, {0: command["largest"]}, self.device)[0]
        else:
            self.wire = connect_receivers(meeting, 0, transports, self.device)[0]
        return {"joined": True}

    def send(self, command: dict[str, Any]) -> dict[str, Any]:
        """Sends messages of some sizes, a few at a time."""
        assert isinstance(self.wire, SendWire)
        deadline = time.monotonic() + command["timeout_s"]
        waiting: deque[Transfer] = deque()
        for number, nbytes in enumerate(command["sizes"]):
            buffer = self.wire.buffer(nbytes, deadline)
            assert buffer.shape == (nbytes,)
            assert nbytes == 0 or buffer.data_ptr() % 16 == 0
            buffer.copy_(pattern(number, nbytes))
            waiting.append(self.wire.post_send(buffer))
            if command.get("hold") == number:
                say({"held": number})
                threading.Event().wait()
            while len(waiting) >= WINDOW:
                waiting.popleft().poll(deadline)
        while waiting:
            waiting.popleft().poll(deadline)
        return {"sent": len(command["sizes"])}

    def receive(self, command: dict[str, Any]) -> dict[str, Any]:
        """Receives messages of some sizes; how many of them are what they should be."""
        assert isinstance(self.wire, RecvWire)
        deadline = time.monotonic() + command["timeout_s"]
        right = 0
        ahead = command.get("ahead", 1)
        posted: deque[tuple[int, int, Transfer]] = deque()
        sizes = list(enumerate(command["sizes"]))
        while sizes or posted:
            while sizes and len(posted) < ahead:
                number, nbytes = sizes.pop(0)
                posted.append((number, nbytes, self.wire.post_recv(nbytes)))
            number, nbytes, transfer = posted.popleft()
            if command.get("hold") == number:
                say({"held": number})
                threading.Event().wait()
            came = transfer.poll(deadline)
            right += int(torch.equal(came.cpu(), pattern(number, nbytes)))
            transfer.release()
        return {"right": right}

    def limit_files(self, command: dict[str, Any]) -> dict[str, Any]:
        """From now on no file of this process, shared memory included, may grow beyond so many bytes; None: any."""
        _soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard if command["nbytes"] is None else command["nbytes"], hard))
        return {}

    def kind(self, _command: dict[str, Any]) -> dict[str, Any]:
        """What its wire is."""
        return {"kind": type(self.wire).__name__}

    def abort_later(self, command: dict[str, Any]) -> dict[str, Any]:
        """Aborts from another thread while this one receives."""
        threading.Timer(command["after_s"], self.abort, [{}]).start()
        return self.receive(command)

    def abort(self, _command: dict[str, Any]) -> dict[str, Any]:
        """Leaves the wire."""
        if self.wire is not None:
            self.wire.abort()
            self.wire.abort()
        self.wire = None
        return {}

    def held(self, _command: dict[str, Any]) -> dict[str, Any]:
        """What the process holds: open files, mappings of shared memory, bytes on its GPU."""
        gc.collect()
        maps = Path("/proc/self/maps").read_text().splitlines()
        return {
            "files": sorted(open_files()),
            "mappings": sum("launcher-bridge" in line or "/dev/shm" in line for line in maps),
            "gpu_bytes": torch.cuda.memory_allocated() if torch.cuda.is_initialized() else 0,
            "unpickled": self.unpickled,
        }


def open_files() -> Iterator[str]:
    """Kinds of the open files."""
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # The listing itself, which is over by now.
            yield str(link.readlink()).split("[")[0]


def main() -> None:
    """Serves commands until standard input ends."""
    torch.set_num_threads(1)
    end = LinkProcess()

    def audit(event: str, _arguments: tuple[Any, ...]) -> None:
        end.unpickled += event == "pickle.find_class"

    say({"ready": True})
    sys.addaudithook(audit)
    for line in sys.stdin:
        command = json.loads(line)
        begin = time.monotonic()
        try:
            say(getattr(end, command["do"])(command))
        except BridgeError as error:
            say({"error": f"{type(error).__name__}: {error}", "seconds": time.monotonic() - begin})


if __name__ == "__main__":
    main()
