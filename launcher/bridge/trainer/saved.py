"""What a checkpoint of a transformers model would hold: its own save-time conversion, followed without a byte.

A model in memory is not its checkpoint: experts are stacked, modules are renamed, tied tensors are saved once, some
buffers never. transformers knows all of it and applies it in ``save_pretrained``; the same functions run here on
placeholders, and what each saved tensor is a view of is read off them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from launcher.bridge.protocol import Manifest, SavedView
from launcher.bridge.weightmap.names import checkpoint_name
from launcher.bridge.weightmap.record import Recorder
from launcher.bridge.weightmap.storages import Sources, Targets, UnknownSource
from launcher.common.errors import BridgeError


def saved_views(module: nn.Module, manifest: Manifest) -> dict[str, tuple[SavedView, ...]]:
    """What of each tensor a transformers model saves, under which names; nothing for another kind of module.

    Args:
        module: may lack modules of the whole, as a pipeline stage does.
        manifest: its tensors.

    Raises:
        BridgeError: a saved tensor is more than a view of one tensor of the module.
    """
    model: Any = getattr(module, "_orig_mod", module)
    if not hasattr(model, "save_pretrained") or not hasattr(model, "base_model_prefix"):
        return {}
    try:
        from transformers.core_model_loading import revert_weight_conversion
    except ImportError:  # before transformers 5, names in memory are those of the checkpoint
        return {}
    sources = Sources(manifest)
    kept = _kept(model, manifest)
    recorder = Recorder(sources, Targets.of({}))
    with torch.no_grad(), recorder:
        saved = revert_weight_conversion(model, {name: sources.placeholder(key) for name, key in kept.items()})
    owners = {entry.alias_of or entry.name: key for key, entry in ((k, sources.entries[k]) for k in kept.values())}
    views: dict[str, list[SavedView]] = {entry.name: [] for entry in manifest}
    for name, tensor in saved.items():
        try:
            root, view = sources.saved_view(name, tensor)
        except UnknownSource as error:
            raise BridgeError(
                f"transformers saves `{name}` of {type(model).__name__} as more than a part of one tensor ({error}):"
                " the bridge cannot send it."
            ) from error
        views[owners[root]].append(view)
    return {name: _runs(found) for name, found in views.items()}


def _kept(model: Any, manifest: Manifest) -> dict[str, str]:
    """From the names that are saved, before conversion, to those in the manifest."""
    ignored = set(getattr(model, "_keys_to_ignore_on_save", None) or ())
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    groups: dict[str, list[str]] = {}
    for entry in manifest:
        if checkpoint_name(entry.name) not in ignored:
            groups.setdefault(entry.alias_of or entry.name, []).append(entry.name)
    kept = {}
    for names in groups.values():
        # Of tied tensors the one is saved that the model does not tie to another.
        own = [name for name in names if checkpoint_name(name) not in tied] or names
        kept[checkpoint_name(own[0])] = own[0]
    return kept


def _runs(views: Sequence[SavedView]) -> tuple[SavedView, ...]:
    """The same views, with those that differ by one number in the name, and lie evenly, as one."""
    found: list[SavedView] = []
    runs: dict[SavedView, list[tuple[int, SavedView]]] = {}
    for view in views:
        match = re.fullmatch(r"(.*\.)(\d+)(\..*)", view.name)
        if match is None or "*" in view.name:
            found.append(view)
        else:
            alike = replace(view, name=f"{match[1]}*{match[3]}", offset=0)
            runs.setdefault(alike, []).append((int(match[2]), view))
    for template, members in runs.items():
        first = members[0][1]
        step = members[1][1].offset - first.offset if len(members) > 1 else 0
        even = all((i, first.offset + i * step) == (number, v.offset) for i, (number, v) in enumerate(members))
        if len(members) > 1 and even:
            found.append(replace(template, offset=first.offset, count=len(members), step=step))
        else:
            found += [view for _, view in members]
    return tuple(found)
