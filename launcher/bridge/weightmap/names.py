"""From the names that a trainer's module has in memory to those of a checkpoint, which is what engines load."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from launcher.bridge.protocol import Manifest

if TYPE_CHECKING:
    from torch import Tensor

Views = Callable[[str, "Tensor"], Iterable[tuple[str, "Tensor"]]]
"""The checkpoint's names for one trainer tensor, each with the view of the tensor that it means."""

WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""Components that ``torch.compile``, FSDP1 and activation checkpointing put into names."""


def checkpoint_name(name: str) -> str:
    """The name without what wrappers put into it."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def checkpoint_views(manifest: Manifest) -> Views:
    """The translation for the tensors of a manifest."""
    entries = {entry.name: entry for entry in manifest}

    def views(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
        saved = entries[name].saved
        if saved is None:
            yield checkpoint_name(name), tensor
            return
        for view in saved:
            for number in range(view.count):
                part = tensor.as_strided(view.split, view.strides, view.offset + number * view.step)
                yield view.name.replace("*", str(number)) if view.count > 1 else view.name, part.reshape(view.shape)

    return views
