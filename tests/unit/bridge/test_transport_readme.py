"""The transport that the folder's README shows works as it stands there."""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from launcher.bridge import transport
from launcher.bridge.transport.base import Meeting, Pair
from launcher.common.errors import TransferError

README = Path(str(transport.__file__)).with_name("README.md")
SIZES = [0, 1, 4097, 1 << 20]


def shown() -> dict[str, Any]:
    """What the README's program defines."""
    (program,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(program, str(README), "exec"), names)
    return names


def test_messages_come_in_order_and_whole_and_a_lost_end_is_an_error() -> None:
    names = shown()
    meeting, pair = Meeting(group="readme", secret="secret", timeout_s=30.0), Pair(sender=0, receiver=0)
    contents = [(torch.arange(size) * 7 + size).to(torch.uint8) for size in SIZES]
    deadline = time.monotonic() + 30.0

    def send() -> None:
        wire = names["connect_sender"](meeting, pair)
        for content in contents:
            buffer = wire.buffer(content.numel(), deadline)
            buffer.copy_(content)
            wire.post_send(buffer).poll(deadline)
        wire.abort()

    thread = threading.Thread(target=send)
    thread.start()
    wire = names["connect_receiver"](meeting, pair)
    for content in contents:
        transfer = wire.post_recv(content.numel())
        assert torch.equal(transfer.poll(deadline), content)
        transfer.release()
    thread.join()
    with pytest.raises(TransferError, match="the other end is gone"):
        wire.post_recv(1).poll(deadline)
    wire.abort()


def test_the_files_that_it_names_exist() -> None:
    for name in re.findall(r"`(\w+\.py)`", README.read_text(encoding="utf-8")):
        assert README.with_name(name).is_file(), name
