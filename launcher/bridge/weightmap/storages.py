"""Tensors known by their storage: placeholders of the trainer's tensors, what is derived from them, parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from launcher.bridge.plan import Box
from launcher.bridge.protocol import Manifest, SavedView
from launcher.bridge.weightmap.model import CopyOp
from launcher.bridge.weightmap.strided import Dim, StridedLayout, box_views, locate, through


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """The storage of a placeholder: a trainer tensor, row-major."""

    name: str
    tensor: Tensor
    """Held, so that no other storage gets this one's address."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Derived:
    """The storage of an unchanged copy of a view of a placeholder; possibly of another type."""

    of: Tensor
    tensor: Tensor
    rounded: torch.dtype | None
    """The type whose precision the values have now, where a cast may have lost some."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unknown:
    """The storage of something computed from placeholders by an operation that is no copy."""

    operation: str
    tensor: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Constant:
    """The storage of a placeholder, or of a copy of one, that a loader has filled with a constant."""

    tensor: Tensor


Tracked = Whole | Derived | Unknown | Constant


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A parameter of the worker, or a buffer."""

    name: str
    tensor: Tensor
    first: int
    """Element of the storage at which it begins."""

    last: int
    """Its last element of the storage."""


class UnknownSource(Exception):
    """A tensor does not hold a plain copy of a part of a trainer tensor."""


def key(tensor: Tensor) -> int:
    """The identity of a tensor's storage, also where it has no memory."""
    return int(tensor.untyped_storage()._cdata)


def extent(tensor: Tensor) -> tuple[int, int]:
    """The first and the last element of the storage that a tensor reaches."""
    first = int(tensor.storage_offset())
    return first, first + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


@dataclass(slots=True)
class Targets:
    """The worker's parameters by storage, with the other names of each (tied weights)."""

    by_name: dict[str, Target] = field(default_factory=dict)
    aliases: dict[str, list[str]] = field(default_factory=dict)
    _by_storage: dict[int, list[Target]] = field(default_factory=dict)

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Targets:
        """From names to tensors, all names of tied ones; the first is the one that counts."""
        self = cls()
        for name, tensor in tensors.items():
            first, last = extent(tensor)
            here = self._by_storage.setdefault(key(tensor), [])
            same = next((t for t in here if (t.first, t.last, t.tensor.shape) == (first, last, tensor.shape)), None)
            if same is not None and tensor.numel():
                self.aliases.setdefault(same.name, []).append(name)
                continue
            target = Target(name=name, tensor=tensor, first=first, last=last)
            here.append(target)
            self.by_name[name] = target
        return self

    def find(self, view: Tensor) -> Target | None:
        """The parameter that a tensor is a view of."""
        here = self._by_storage.get(key(view))
        if here is None:
            return None
        first, last = extent(view)
        return next((t for t in here if t.first <= first and last <= t.last), None)

    def touches(self, view: Tensor) -> bool:
        """Whether the tensor lies in the storage of any parameter."""
        return key(view) in self._by_storage


class Sources:
    """The placeholders: tensors of the trainer's shapes and types without memory."""

    def __init__(self, manifest: Manifest) -> None:
        self.entries = {entry.name: entry for entry in manifest}
        self._tracked: dict[int, Tracked] = {}
        self._layouts = {e.name: StridedLayout.contiguous(e.shape) for e in manifest if e.alias_of is None}

    def placeholder(self, name: str) -> Tensor:
        """A new placeholder for a trainer tensor; for a tied one, of the tensor that owns its bytes."""
        entry = self.entries[name]
        placeholder = torch.empty(entry.shape, dtype=getattr(torch, entry.dtype), device="meta")
        self._tracked[key(placeholder)] = Whole(name=entry.alias_of or name, tensor=placeholder)
        return placeholder

    def find(self, tensor: Tensor) -> Tracked | None:
        """What is known about a tensor's storage; None for one that has nothing to do with the trainer."""
        return self._tracked.get(key(tensor))

    def derive(self, of: Tensor, result: Tensor) -> None:
        """``result`` is a copy of ``of``, element by element."""
        known = self._tracked[key(of)]
        if isinstance(known, Unknown):
            self.forget(result, known.operation)
            return
        if isinstance(known, Constant):
            self._tracked[key(result)] = Constant(tensor=result)
            return
        rounded = known.rounded if isinstance(known, Derived) else None
        if rounded is not None and not _exact(rounded, result.dtype):
            self.forget(result, f"a cast to {rounded} and then to {result.dtype}")
            return
        if rounded is None and not _exact(of.dtype, result.dtype):
            rounded = result.dtype
        self._tracked[key(result)] = Derived(of=of, tensor=result, rounded=rounded)

    def fill(self, view: Tensor) -> bool:
        """A constant is written into what is tracked; False if not into all of its storage, which is not followed."""
        tensor = self._tracked[key(view)].tensor
        every = all(stride for size, stride in zip(view.shape, view.stride(), strict=True) if size > 1)
        if view.numel() != tensor.numel() or not every:
            return False
        self._tracked[key(view)] = Constant(tensor=tensor)
        return True

    def forget(self, result: Tensor, operation: str) -> None:
        """``result`` was computed from placeholders in a way that is not followed."""
        self._tracked[key(result)] = Unknown(operation=operation, tensor=result)

    def roots(self, tensor: Tensor) -> str | None:
        """The trainer tensor that a tensor is a copy of a part of."""
        known = self._tracked.get(key(tensor))
        while isinstance(known, Derived):
            known = self._tracked.get(key(known.of))
        return known.name if isinstance(known, Whole) else None

    def saved_view(self, name: str, tensor: Tensor) -> tuple[str, SavedView]:
        """The trainer tensor of which a tensor is a view, and which, for a checkpoint that has it under ``name``.

        Raises:
            UnknownSource: it is more than a view of one; with the reason.
        """
        if self.find(tensor) is None:
            raise UnknownSource("it is computed")
        shape = tuple(tensor.shape)
        known, offset, dims = self._root(tensor, StridedLayout.contiguous(shape).strides, tensor.dtype)
        dims = sorted((dim for dim in dims if dim.count > 1), key=lambda dim: -dim.other)
        split, strides = tuple(dim.count for dim in dims), tuple(dim.stride for dim in dims)
        return known.name, SavedView(name=name, offset=offset, split=split, strides=strides, shape=shape)

    def _root(self, source: Tensor, strides: Sequence[int], rounds_to: torch.dtype) -> tuple[Whole, int, list[Dim]]:
        """The placeholder that a tensor is a plain copy of a part of, walked together with a view of other strides."""
        known = self._tracked[key(source)]
        offset = int(source.storage_offset())
        dims = [Dim(*dim) for dim in zip(source.shape, source.stride(), strides, strict=True)]
        while isinstance(known, Derived):
            if source.dtype != known.tensor.dtype:
                raise UnknownSource(f"bits of {known.tensor.dtype} are read as {source.dtype}")
            if known.rounded not in (None, rounds_to):
                raise UnknownSource(f"its values are rounded to {known.rounded} on the way")
            located = locate(offset, [dim for dim in dims if dim.stride], _layout(known.tensor))
            if located is None:
                raise UnknownSource("it is written from an irregular view")
            repeated = [dim for dim in dims if not dim.stride]
            source = known.of
            offset, dims = through(located, int(source.storage_offset()), source.stride())
            dims += repeated
            known = self._tracked[key(source)]
        if isinstance(known, Unknown):
            raise UnknownSource(f"{known.operation} is no copy")
        if isinstance(known, Constant):
            raise UnknownSource("it is a constant")
        if source.dtype != known.tensor.dtype:
            raise UnknownSource(f"bits of {known.tensor.dtype} are read as {source.dtype}")
        return known, offset, dims

    def copies(self, view: Tensor, target: Target, source: Tensor) -> list[CopyOp]:
        """What ``view.copy_(source)`` writes into a parameter, ``source`` being a view of something tracked.

        Raises:
            UnknownSource: It is no plain copy, or too irregular to write down; with the reason.
        """
        if view.dtype != target.tensor.dtype:
            raise UnknownSource(f"its bits are written as {view.dtype}")
        source = source.expand(view.shape)
        known, offset, dims = self._root(source, view.stride(), target.tensor.dtype)
        found = box_views(offset, int(view.storage_offset()) - target.first, dims, self._layouts[known.name])
        if found is None:
            raise UnknownSource(f"what is taken of `{known.name}` is no box")
        return [
            CopyOp(
                source_name=known.name,
                source_box=view.box,
                parameter=target.name,
                offset=view.offset,
                shape=view.shape,
                strides=view.strides,
            )
            for view in found
        ]


def region(target: Target, view: Tensor) -> Box | None:
    """The box of a parameter that a view of it covers; None when it is no box."""
    dims = [Dim(size, stride, 0) for size, stride in zip(view.shape, view.stride(), strict=True)]
    located = locate(int(view.storage_offset()) - target.first, dims, _layout(target.tensor))
    return located.box() if located else None


def _layout(tensor: Tensor) -> StridedLayout:
    return StridedLayout(tuple(tensor.shape), tuple(tensor.stride()))


def _exact(narrow: torch.dtype, wide: torch.dtype) -> bool:
    both_float = narrow.is_floating_point and wide.is_floating_point
    return narrow == wide or (both_float and torch.promote_types(narrow, wide) == wide)
