"""The weight map: which boxes of the trainer's tensors fill each parameter of one engine worker, and how."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from launcher.bridge.plan import Box
from launcher.bridge.protocol import Manifest, TensorEntry
from launcher.common.codec import from_builtins
from launcher.common.errors import BridgeError


class LoadMethod(StrEnum):
    """How a parameter gets its values."""

    TRACED = "traced"
    """Copies that the model's own loader was seen to make."""

    PACKED = "packed"
    """The same copies into a tensor beside the parameter, and the engine's own packing of the whole at the commit."""

    RELOADED = "reloaded"
    """Whole tensors through the model's own loader, for every version anew."""

    UNCHANGED = "unchanged"
    """No tensor of the trainer feeds it: it keeps what it has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyOp:
    """One box of one trainer tensor and the elements of one parameter that it fills.

    The box, read in row-major order and viewed as ``shape``, goes to the strided view of the parameter. ``shape`` is
    the box's own where no dimension is taken apart.
    """

    source_name: str
    source_box: Box
    """In coordinates of the whole trainer tensor."""

    parameter: str
    offset: int
    """Elements from the parameter's first."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    """Elements between neighbours in the parameter's storage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundParameter:
    """One parameter (or buffer that the loader writes) of the worker."""

    name: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str
    method: LoadMethod
    reason: str = ""
    """Why it is not simply traced; empty otherwise."""

    copies: tuple[CopyOp, ...] = ()
    padding: tuple[Box, ...] = ()
    """Regions that no tensor feeds: the loader fills them with a constant, once (a padded vocabulary)."""

    aliases: tuple[str, ...] = ()
    """Other names of the same storage (tied weights)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightMap:
    """Everything that one worker requires of the trainer for one version; a value, the same for every version."""

    manifest: Manifest
    """The trainer's tensors that it was made for."""

    parameters: tuple[BoundParameter, ...]
    reloaded: tuple[str, ...] = ()
    """Trainer tensors that go whole through the loader, for the parameters whose method is that."""

    unused: tuple[str, ...] = ()
    """Trainer tensors that this worker does not need: other ranks' layers or experts, the other name of a tied one."""

    @property
    def copies(self) -> tuple[CopyOp, ...]:
        """All copies, in the order of the parameters."""
        return tuple(copy for bound in self.parameters for copy in bound.copies)

    @property
    def methods(self) -> dict[str, LoadMethod]:
        """Which method was taken, by parameter."""
        return {bound.name: bound.method for bound in self.parameters}

    def describe(self) -> str:
        """For people: the methods with their counts, then everything that is not a plain traced parameter."""
        counts = Counter(bound.method for bound in self.parameters)
        head = ", ".join(f"{counts[method]} {method}" for method in LoadMethod if counts[method])
        return "\n".join([f"{len(self.parameters)} parameters: {head}", *self._remarks()])

    def _remarks(self) -> Iterator[str]:
        for bound in self.parameters:
            if bound.method is not LoadMethod.TRACED:
                yield f"  {bound.method:<9} {bound.name}: {bound.reason}"
            for box in bound.padding:
                yield f"  padding   {bound.name}: {box.volume} elements from {list(box.start)} to {list(box.stop)}"
            for alias in bound.aliases:
                yield f"  tied      {alias} is {bound.name}"
        for name in self.unused:
            yield f"  unused    {name}"

    @property
    def digest(self) -> str:
        """SHA-256, equal exactly when the weight maps are."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "manifest": [asdict(entry) for entry in self.manifest],
            "parameters": [_bound_to_json(bound) for bound in self.parameters],
            "reloaded": list(self.reloaded),
            "unused": list(self.unused),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> WeightMap:
        """The weight map of its JSON form.

        Raises:
            KeyError, TypeError, ValueError: It is not one.
        """
        return cls(
            manifest=from_builtins(data["manifest"], Manifest),
            parameters=tuple(_bound_from_json(item) for item in data["parameters"]),
            reloaded=tuple(data["reloaded"]),
            unused=tuple(data["unused"]),
        )

    def owners(self) -> dict[str, TensorEntry]:
        """The trainer's tensors that have bytes of their own, by name."""
        return {entry.name: entry for entry in self.manifest if entry.alias_of is None}


def unused_tensors(weight_maps: Sequence[WeightMap]) -> tuple[str, ...]:
    """Trainer tensors that no worker of a replica takes: the engine's loader drops some unknown names in silence.

    A tied tensor's other name is none of them, and neither is what no checkpoint has.
    """
    unused = [set(weight_map.unused) for weight_map in weight_maps]
    manifest = weight_maps[0].manifest
    wanted = {e.alias_of or e.name for e in manifest if e.saved != ()}
    return tuple(e.name for e in manifest if e.name in wanted and all(e.name in names for names in unused))


def check_alike(weight_maps: Sequence[WeightMap]) -> None:
    """Compares how the workers of one replica load each parameter that several of them have a part of.

    Raises:
        BridgeError: one of them would copy into a parameter what another one loads anew, or packs.
    """
    seen: dict[str, tuple[int, LoadMethod]] = {}
    for rank, weight_map in enumerate(weight_maps):
        for bound in weight_map.parameters:
            first, method = seen.setdefault(bound.name, (rank, bound.method))
            if method is not bound.method:
                raise BridgeError(
                    f"The engine's `{bound.name}` would be loaded in different ways: {method} in worker {first},"
                    f" {bound.method} in worker {rank} ({bound.reason or 'as its loader does'}). This engine cannot be"
                    " updated."
                )


def _bound_to_json(bound: BoundParameter) -> dict[str, Any]:
    return {
        "name": bound.name,
        "shape": bound.shape,
        "strides": bound.strides,
        "dtype": bound.dtype,
        "method": str(bound.method),
        "reason": bound.reason,
        "copies": [
            [c.source_name, c.source_box.start, c.source_box.stop, c.offset, c.shape, c.strides] for c in bound.copies
        ],
        "padding": [[box.start, box.stop] for box in bound.padding],
        "aliases": bound.aliases,
    }


def _bound_from_json(item: Mapping[str, Any]) -> BoundParameter:
    return BoundParameter(
        name=str(item["name"]),
        shape=tuple(item["shape"]),
        strides=tuple(item["strides"]),
        dtype=str(item["dtype"]),
        method=LoadMethod(item["method"]),
        reason=str(item["reason"]),
        copies=tuple(
            CopyOp(
                source_name=str(source),
                source_box=Box(tuple(start), tuple(stop)),
                parameter=str(item["name"]),
                offset=int(offset),
                shape=tuple(shape),
                strides=tuple(strides),
            )
            for source, start, stop, offset, shape, strides in item["copies"]
        ),
        padding=tuple(Box(tuple(start), tuple(stop)) for start, stop in item["padding"]),
        aliases=tuple(item["aliases"]),
    )
