"""Watches a loader at work on placeholders: copies into parameters are written down instead of made."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from launcher.bridge.plan import Box
from launcher.bridge.weightmap.model import CopyOp
from launcher.bridge.weightmap.storages import Constant, Sources, Target, Targets, UnknownSource, region

aten = torch.ops.aten

# Copies of one tensor, element by element; a cast is one, too.
COPIES = frozenset({aten.clone.default, aten._to_copy.default, aten.contiguous.default})
FILLS = frozenset({aten.fill_.Scalar, aten.fill_.Tensor, aten.zero_.default})


class _Kind(Enum):
    VIEW = auto()
    COPY_INTO = auto()
    FILL = auto()
    COPY = auto()
    OTHER = auto()


@dataclass(slots=True)
class Record:
    """What was seen of one parameter, in the order in which it happened."""

    events: list[CopyOp | Box] = field(default_factory=list)
    """Copies, and regions that were filled with a constant."""

    unknown: str = ""
    """Why it could not be followed; empty if it could."""

    sources: set[str] = field(default_factory=set)
    """Trainer tensors that took part, also in what could not be followed."""


class Interrupted(RuntimeError):
    """The loader wanted a number out of a placeholder, which has none."""


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The mode under which a loader runs. It changes no parameter.

    Views need no attention: a tensor without memory keeps offset, sizes and strides like any other, and the storage
    tells whose view it is.
    """

    def __init__(self, sources: Sources, targets: Targets) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._sources = sources
        self._targets = targets
        self._kinds: dict[Any, _Kind] = {}
        self.records: dict[str, Record] = {}
        self.current = ""
        """The trainer tensor that the loader was last given."""

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Called for every operation below autograd."""
        kwargs = kwargs or {}
        kind = self._kinds.get(func) or self._kinds.setdefault(func, _kind(func))
        if kind is _Kind.VIEW:
            return func(*args, **kwargs)
        if kind is _Kind.COPY_INTO and self._sources.find(args[1]) is not None:
            target = self._targets.find(args[0])
            if target is not None:
                self._copy(target, args[0], args[1])
                return args[0]
        if kind is _Kind.FILL:
            target = self._targets.find(args[0])
            if target is not None:
                self._fill(target, args[0])
                return args[0]
            # Some loaders zero what one rank alone is to add, and then load it like the rest.
            if self._sources.find(args[0]) is not None and self._sources.fill(args[0]):
                return args[0]
        if kind is _Kind.COPY and self._sources.find(args[0]) is not None:
            result = func(args[0], **{**kwargs, **({"device": "meta"} if "device" in kwargs else {})})
            self._sources.derive(args[0], result)
            return result
        return self._other(func, args, kwargs)

    def _record(self, target: Target) -> Record:
        return self.records.setdefault(target.name, Record())

    def _copy(self, target: Target, view: Tensor, source: Tensor) -> None:
        record = self._record(target)
        record.sources.add(self._sources.roots(source) or self.current)
        if isinstance(self._sources.find(source), Constant):
            self._fill(target, view)
            return
        try:
            if view.numel():
                record.events += self._sources.copies(view, target, source)
        except UnknownSource as error:
            record.unknown = record.unknown or f"{error} (from `{self.current}`)"

    def _fill(self, target: Target, view: Tensor) -> None:
        if not view.numel():
            return
        box = region(target, view)
        record = self._record(target)
        if box is None:
            record.unknown = record.unknown or "a region that is no box is filled with a constant"
        else:
            record.events.append(box)

    def _other(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        tracked = [t for t in _tensors((*args, *kwargs.values())) if self._sources.find(t) is not None]
        written = [t for t in _written(func, args, kwargs) if self._targets.touches(t)]
        for view in written:
            target = self._targets.find(view)
            name = "a computed tensor" if not tracked else f"`{self.current}`"
            if target is not None:
                record = self._record(target)
                record.unknown = record.unknown or f"{func} writes it from {name}"
                record.sources.add(self.current)
        if written:
            # An operation in place returns what it wrote; the parameter keeps its values.
            return written[0] if len(written) == 1 else tuple(written)
        if not tracked:
            return func(*args, **kwargs)
        if not any("Tensor" in str(item.type) for item in func._schema.returns):
            raise Interrupted(f"{func} reads values of `{self.current}`")
        try:
            result = func(*args, **kwargs)
        except (RuntimeError, NotImplementedError, ValueError, IndexError) as error:
            if _devices((*args, *kwargs.values())) > 1:
                raise Interrupted(f"{func} mixes `{self.current}` with other tensors") from error
            raise
        for tensor in _tensors((result,)):
            if self._sources.find(tensor) is None or _written(func, args, kwargs):
                self._sources.forget(tensor, str(func))
        return result


def _kind(func: Any) -> _Kind:
    if func is aten.copy_.default:
        return _Kind.COPY_INTO
    if func in FILLS:
        return _Kind.FILL
    if func in COPIES:
        return _Kind.COPY
    schema = func._schema
    writes = any(a.alias_info is not None and a.alias_info.is_write for a in schema.arguments)
    aliased = bool(schema.returns) and all(item.alias_info is not None for item in schema.returns)
    if func is aten._unsafe_view.default or (aliased and not writes):
        return _Kind.VIEW
    return _Kind.OTHER


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    found: list[Tensor] = []
    for i, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[i] if i < len(args) else kwargs.get(argument.name)
            found += _tensors((value,))
    return found


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _devices(values: Iterable[Any]) -> int:
    return len({tensor.device.type for tensor in _tensors(values)})


Loader = Callable[[Iterator[tuple[str, Tensor]]], Any]
"""A model's ``load_weights``."""
