"""Builds the weight map of a worker: follows the model's own loader, and leaves to it what cannot be followed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from launcher.bridge.plan.boxes import describe
from launcher.bridge.protocol import Manifest
from launcher.bridge.weightmap.coverage import Coverage, cover
from launcher.bridge.weightmap.model import BoundParameter, LoadMethod, WeightMap
from launcher.bridge.weightmap.names import Views, checkpoint_views
from launcher.bridge.weightmap.record import Loader, Record
from launcher.bridge.weightmap.storages import Sources, Targets
from launcher.bridge.weightmap.strided import StridedLayout
from launcher.bridge.weightmap.trace import Trace, trace
from launcher.common.errors import BridgeError

OPTIONAL = (r".*\.(k|v|q|prob)_scale",)
"""Parameters that checkpoints rarely have: an engine's own defaults for them are right."""


def build_weight_map(
    load: Loader,
    live: Mapping[str, Tensor],
    manifest: Manifest,
    *,
    views: Views | None = None,
    processed: Mapping[str, str] | None = None,
    packed: Mapping[str, str] | None = None,
    optional: Sequence[str] = OPTIONAL,
) -> WeightMap:
    """How the trainer's tensors fill one worker's parameters. Nothing is written, and no memory is taken.

    Args:
        load: The model's ``load_weights``.
        live: Its parameters, and the buffers that its loader may write, by all their names.
        manifest: The trainer's tensors.
        views: From the trainer's names to the checkpoint's; by default the usual ones.
        processed: Parameters that the engine does not keep as its loader wrote them, with the reason. They can only be
            reloaded.
        packed: Parameters that are so, but by a packing of the same shape that the worker can repeat, with its name.
        kept: Regular expressions of the parameters that need no tensor of the trainer.

    Raises:
        BridgeError: The loader refuses a tensor of the trainer, or a parameter would not be wholly written.
    """
    targets, sources = Targets.of(live), Sources(manifest)
    seen = trace(load, sources, targets, views or checkpoint_views(manifest))
    builder = _Builder(
        targets=targets, sources=sources, seen=seen, processed=processed or {}, packed=packed or {}, optional=optional
    )
    return builder.finish(manifest)


class _Builder:
    def __init__(
        self,
        *,
        targets: Targets,
        sources: Sources,
        seen: Trace,
        processed: Mapping[str, str],
        packed: Mapping[str, str],
        optional: Sequence[str],
    ) -> None:
        self.targets, self.sources, self.seen = targets, sources, seen
        self._packed = packed
        self._optional = [re.compile(pattern) for pattern in optional]
        self._covered: dict[str, Coverage] = {}
        self._methods: dict[str, tuple[LoadMethod, str]] = {}
        for name, target in targets.by_name.items():
            record = seen.records.get(name)
            if record is None and not isinstance(target.tensor, torch.nn.Parameter):
                continue  # a buffer that is no weight
            coverage = self._cover(name, record or Record())
            self._covered[name] = coverage
            reason = processed.get(name) or (record.unknown if record else "") or coverage.problem
            if not reason and coverage.missing and (near := self._interrupted_near(name)):
                reason = seen.interrupted[near[0]]
            self._methods[name] = (LoadMethod.RELOADED, reason) if reason else _followed(packed.get(name, ""))

    def finish(self, manifest: Manifest) -> WeightMap:
        """The weight map, with whole modules reloaded: a loader that processes needs all of its tensors."""
        modules = {_module(name): name for name, (method, _) in self._methods.items() if method is LoadMethod.RELOADED}
        reloaded: set[str] = set()
        parameters = []
        for name, (method, reason) in self._methods.items():
            reloaded_with = modules.get(_module(name))
            if reloaded_with is None or (method is not LoadMethod.RELOADED and name not in self.seen.records):
                parameters.append(self._bound(name, method, reason))
                continue
            feeding = self._feeding(name)
            if name in self._packed:
                raise BridgeError(
                    f"`{name}` is kept packed, and `{reloaded_with}` beside it can only be loaded anew"
                    f" ({self._methods[reloaded_with][1]}): one module would need both. This engine cannot be updated."
                )
            reloaded |= {self._owner(source) for source in feeding}
            why = reason if method is LoadMethod.RELOADED else f"its module is loaded as a whole, for `{reloaded_with}`"
            parameters.append(self._bound(name, LoadMethod.RELOADED if feeding else LoadMethod.UNCHANGED, why))
        used = reloaded | {copy.source_name for bound in parameters for copy in bound.copies}
        return WeightMap(
            manifest=manifest,
            parameters=tuple(parameters),
            reloaded=tuple(entry.name for entry in manifest if entry.name in reloaded),
            unused=tuple(entry.name for entry in manifest if entry.name not in used),
        )

    def _bound(self, name: str, method: LoadMethod, reason: str) -> BoundParameter:
        tensor, coverage = self.targets.by_name[name].tensor, self._covered[name]
        copied = method in (LoadMethod.TRACED, LoadMethod.PACKED)
        if copied and coverage.missing:
            if not self._is_optional(name):
                raise BridgeError(self._missing(name, coverage))
            if not coverage.copies:
                method, reason, copied = LoadMethod.UNCHANGED, "the trainer has no tensor for it", False
        return BoundParameter(
            name=name,
            shape=tuple(tensor.shape),
            strides=tuple(tensor.stride()),
            dtype=str(tensor.dtype).removeprefix("torch."),
            method=method,
            reason=reason,
            copies=coverage.copies if copied else (),
            padding=(*coverage.padding, *coverage.missing) if copied else (),
            aliases=tuple(self.targets.aliases.get(name, ())),
        )

    def _feeding(self, name: str) -> set[str]:
        record = self.seen.records.get(name)
        feeding = (record.sources if record else set()) | set(self._interrupted_near(name))
        if not feeding and not self._is_optional(name):
            raise BridgeError(self._missing(name, self._covered[name]))
        return feeding

    def _cover(self, name: str, record: Record) -> Coverage:
        tensor = self.targets.by_name[name].tensor
        return cover(StridedLayout(tuple(tensor.shape), tuple(tensor.stride())), record.events)

    def _is_optional(self, name: str) -> bool:
        return any(pattern.fullmatch(name) for pattern in self._optional)

    def _owner(self, source: str) -> str:
        return self.sources.entries[source].alias_of or source

    def _interrupted_near(self, name: str) -> list[str]:
        layer = _layer(name)
        return [source for source in self.seen.interrupted if _layer(source) == layer]

    def _missing(self, name: str, coverage: Coverage) -> str:
        shape = tuple(self.targets.by_name[name].tensor.shape)
        record = self.seen.records.get(name)
        fed = f" (only `{'`, `'.join(sorted(record.sources))}`)" if record and record.sources else ""
        what = f"elements {describe(coverage.missing[0])}" if fed else "no element"
        verb = "are written by no" if fed else "is written by a"
        return (
            f"The engine's `{name}` {shape}: {what} {verb} tensor of the trainer{fed}."
            " HINT: publish all weights of the model, under the names of its checkpoint."
        )


def _followed(packing: str) -> tuple[LoadMethod, str]:
    return (LoadMethod.PACKED, packing) if packing else (LoadMethod.TRACED, "")


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _layer(name: str) -> str:
    """The name up to its first number, which is the layer's: as near as names tell without the loader's help."""
    parts = name.split(".")
    last = next((i for i, part in enumerate(parts) if part.isdecimal()), len(parts) - 2)
    return ".".join(parts[: last + 1])
