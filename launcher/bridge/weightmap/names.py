"""From the names that a trainer's module has in memory to those of a checkpoint, which is what engines load."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from launcher.bridge.protocol import Manifest

if TYPE_CHECKING:
    from torch import Tensor

Views = Callable[[str, "Tensor"], Iterable[tuple[str, "Tensor"]]]
"""The checkpoint's names for one trainer tensor, each with the view of the tensor that it means."""

WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""Components that ``torch.compile``, FSDP1 and activation checkpointing put into names."""

STACKED = re.compile(r"(?P<experts>.*\.experts)\.(?P<kind>gate_up_proj|down_proj)")
PROJECTIONS = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}


def checkpoint_name(name: str) -> str:
    """The name without what wrappers put into it."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def checkpoint_views(manifest: Manifest) -> Views:
    """The translation for the tensors of a manifest.

    transformers 5 keeps the experts of a layer stacked in memory, ``experts.gate_up_proj`` (experts, 2 x intermediate,
    hidden) and ``experts.down_proj`` (experts, hidden, intermediate), and saves one tensor per expert and projection.
    Models that are stacked on disk as well have these dimensions the other way round, and are left as they are.
    """
    shapes = {checkpoint_name(entry.name): entry.shape for entry in manifest}
    unstack = {
        name.removesuffix(".gate_up_proj")
        for name, shape in shapes.items()
        if name.endswith(".experts.gate_up_proj")
        and len(shape) == 3
        and len(down := shapes.get(name.removesuffix("gate_up_proj") + "down_proj", ())) == 3
        and shape[1:] == (2 * down[2], down[1])
    }

    def views(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
        name = checkpoint_name(name)
        stacked = STACKED.fullmatch(name)
        if stacked is None or stacked["experts"] not in unstack:
            yield name, tensor
            return
        projections = PROJECTIONS[stacked["kind"]]
        for expert, matrix in enumerate(tensor.unbind(0)):
            for projection, rows in zip(projections, matrix.chunk(len(projections), 0), strict=True):
                yield f"{stacked['experts']}.{expert}.{projection}.weight", rows

    return views
