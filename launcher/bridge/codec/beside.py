"""Work that a GPU does beside what its current stream is given."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class SideStream:
    """A stream for a kind of work; on a CPU, none.

    Args:
        device: whose.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream | None = None

    @contextmanager
    def work(self) -> Iterator[None]:
        """What is enqueued inside is carried out after what the current stream has been given, beside what follows."""
        if self._device.type != "cuda":
            yield
            return
        if self._stream is None:
            self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            yield

    def synchronize(self) -> None:
        """Returns once all of it is done."""
        if self._stream is not None:
            self._stream.synchronize()
