"""What is said of names that do not fit: what to do first, the nearest names, and what wrapper put them there."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches

import torch

from launcher.bridge.plan.sharding import shards_of
from launcher.bridge.protocol import TrainerSpec
from launcher.bridge.trainer.description import MOST_NAMED, named_ranks

FEW = 3
"""Names that a message lists; it counts the rest."""

HINT = " HINT: "
LIST = re.compile(r"\{('[^']*'(?:, '[^']*')*)\}|\[('[^']*'(?:, '[^']*')*)\]")
"""A set or a list of names in an engine's words."""

WRAPPERS = {
    "module.": "DistributedDataParallel or an engine of another library puts it there: publish what it wraps,"
    " `model.module`",
    "base_model.model.": "PEFT puts it there: publish `peft_source(model)`, which merges on the way",
    "_orig_mod.": "`torch.compile` puts it there",
}


def wrapper_problem(tensors: Mapping[str, torch.Tensor]) -> str | None:
    """Why tensors are no weights that can be published; None if nothing of their names and shapes says so."""
    for name, tensor in tensors.items():
        if hasattr(tensor, "ds_id") or tuple(tensor.shape) == (0,):
            return (
                "HINT: publish `launcher.bridge.zero3_source(engine)`."
                f" `{name}` {tuple(tensor.shape)} is a placeholder: DeepSpeed ZeRO-3 keeps its values elsewhere."
            )
        if re.search(r"\.(lora_(embedding_)?[AB]|base_layer)(\.|$)", name):
            return (
                "HINT: publish `launcher.bridge.peft_source(model)`, which merges on the way, or the"
                f" adapter alone with `publish_adapter`. `{name}` is a matrix of PEFT's, which no checkpoint has."
            )
    return None


def few(names: Iterable[str]) -> str:
    """The first names in order, and how many more there are."""
    found = sorted(names)
    more = f" and {len(found) - FEW} more" if len(found) > FEW else ""
    return ", ".join(f"`{name}`" for name in found[:FEW]) + more


def explained(reason: str, spec: TrainerSpec) -> str:
    """An engine's reason, with what to do first: its own hint, or a better one, and which ranks hold what it names."""
    body, _, hint = reason.partition(HINT)
    named = re.findall(r"[`']([\w.]+)[`']", body)
    ours = [entry.name for entry in spec.manifest]
    return " ".join(
        part
        for part in (
            f"HINT: {_prefix(named, ours) or hint}" if hint or _prefix(named, ours) else "",
            LIST.sub(_shortened, body),
            _nearest(named, ours),
            _holders(named, spec),
        )
        if part
    )


def _shortened(found: re.Match[str]) -> str:
    return few(re.findall(r"'([^']*)'", found[0]))


def _prefix(named: Sequence[str], ours: Sequence[str]) -> str | None:
    """What all of the trainer's names begin with, or lack, so that the others fit."""
    theirs = [name for name in named if name not in ours and "." in name]
    for name in theirs:
        for own in ours:
            if own.endswith(f".{name}"):
                prefix = own.removesuffix(name)
                if all(other.startswith(prefix) for other in ours):
                    known = next((text for key, text in WRAPPERS.items() if prefix.endswith(key)), None)
                    return (
                        f"every name begins with `{prefix}`, which the engine's do not{f'; {known}' if known else ''}."
                    )
            elif name.endswith(f".{own}") and "." in own:
                return f"the engine's names begin with `{name.removesuffix(own)}`, which the trainer's do not."
    known = next((key for key in WRAPPERS if ours and all(own.startswith(key) for own in ours)), None)
    return None if known is None else f"every name begins with `{known}`; {WRAPPERS[known]}."


def _nearest(named: Sequence[str], ours: Sequence[str]) -> str:
    """For a name that the engine misses: what comes near it."""
    for name in named:
        if name not in ours and "." in name:
            near = get_close_matches(name, ours, 1)
            return f"Nearest to `{name}`: `{near[0]}`." if near else ""
    return ""


def _holders(named: Sequence[str], spec: TrainerSpec) -> str:
    """Which ranks hold the tensors that are named, where that are not all of them."""
    size = len(spec.locations)
    shapes = {entry.name: entry.shape for entry in spec.manifest}
    notes: list[str] = []
    for name in dict.fromkeys(named):
        if name in spec.placement_of and len(notes) < MOST_NAMED:
            shards = shards_of(spec.placements[spec.placement_of[name]], shapes[name])
            ranks = {rank for shard in shards for rank in shard.ranks}
            if len(ranks) < size:
                notes.append(f"`{name}` is held by trainer {named_ranks(sorted(ranks))} of {size} only.")
    return " ".join(notes)
