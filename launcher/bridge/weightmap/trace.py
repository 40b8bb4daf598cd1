"""Runs a model's own loader on placeholders and returns what it did."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType

import torch
from torch import Tensor

from launcher.bridge.weightmap.names import Views
from launcher.bridge.weightmap.record import Interrupted, Loader, Record, Recorder
from launcher.bridge.weightmap.storages import Sources, Target, Targets
from launcher.common.errors import BridgeError


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """What one loader did with one manifest."""

    records: dict[str, Record]
    """By parameter."""

    interrupted: dict[str, str]
    """Trainer tensors that the loader could not be followed with, and why."""


def trace(load: Loader, sources: Sources, targets: Targets, views: Views) -> Trace:
    """Feeds the loader every trainer tensor once. No parameter changes.

    Raises:
        BridgeError: The loader refuses a tensor: a name that it does not know, or a shape that does not fit.
    """
    recorder = Recorder(sources, targets)
    before = {name: _place(target.tensor) for name, target in targets.by_name.items()}
    interrupted: dict[str, str] = {}
    names = list(sources.entries)
    while names:
        feed = _Feed(names, sources, views, recorder)
        try:
            with torch.no_grad(), recorder:
                load(iter(feed))
            if feed.names:
                raise BridgeError(f"The engine's loader stopped at `{recorder.current}` and did not take the rest.")
        except BridgeError:
            raise
        except Exception as error:
            words = _interruption(error)
            if words is None:
                raise BridgeError(_refusal(error, recorder.current, sources, targets)) from error
            interrupted[recorder.current] = words
        # The loader takes tensors in any order and number; after an interruption it goes on with the next one.
        names = list(feed.names)
    for name, target in targets.by_name.items():
        if _place(target.tensor) != before[name]:
            raise BridgeError(f"The engine's loader replaces the storage of `{name}`; it cannot be followed.")
    return Trace(records=recorder.records, interrupted=interrupted)


class _Feed:
    """Hands out the tensors of the names that are left, and remembers which."""

    def __init__(self, names: Sequence[str], sources: Sources, views: Views, recorder: Recorder) -> None:
        self.names = deque(names)
        self._sources, self._views, self._recorder = sources, views, recorder

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        while self.names:
            name = self.names.popleft()
            self._recorder.current = name
            yield from self._views(name, self._sources.placeholder(name))


def _place(tensor: Tensor) -> tuple[int, int, torch.Size, tuple[int, ...]]:
    return int(tensor.untyped_storage()._cdata), int(tensor.storage_offset()), tensor.shape, tensor.stride()


def _interruption(error: BaseException | None) -> str | None:
    # Loaders wrap what they meet: look behind the last exception, too.
    while error is not None:
        if isinstance(error, Interrupted):
            return str(error)
        error = error.__cause__ or error.__context__
    return None


def _refusal(error: Exception, name: str, sources: Sources, targets: Targets) -> str:
    entry = sources.entries[name]
    parameter = _parameter(error.__traceback__, targets)
    into = f" into `{parameter.name}` {tuple(parameter.tensor.shape)}" if parameter else ""
    words = (str(error) or "an assertion of its own failed").splitlines()[0]
    return (
        f"The trainer's `{name}` {entry.shape} does not go{into}: the engine's loader says: {words}"
        " HINT: trainer and engine must be built from the same configuration."
    )


def _parameter(traceback: TracebackType | None, targets: Targets) -> Target | None:
    """The parameter that the innermost frames of a loader were working on, for the message."""
    found = None
    while traceback is not None:
        for value in list(traceback.tb_frame.f_locals.values()):
            if isinstance(value, Tensor):
                found = targets.find(value) or found
        traceback = traceback.tb_next
    return found
