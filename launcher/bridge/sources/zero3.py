"""DeepSpeed ZeRO-3: each rank publishes its partition of every parameter; nothing is gathered."""

from __future__ import annotations

from typing import Any

from torch import nn

from launcher.bridge.trainer.rank_group import world
from launcher.bridge.trainer.source import WeightSource
from launcher.common.errors import BridgeError


def zero3_source(model: nn.Module) -> WeightSource:
    """What this rank holds of a model that DeepSpeed has partitioned (``ds_tensor`` of its parameters).

    Memory: none. Partitions are stretches of a parameter's elements in row-major order, one for each rank in order;
    they go to the engines from where they are.

    Args:
        model: the engine that ``deepspeed.initialize`` returned, or the module in it; partitioned over all ranks, in
            memory (not on NVMe).

    Raises:
        BridgeError: a parameter is partitioned over some ranks only, or is offloaded to NVMe.
    """
    module = getattr(model, "module", model)
    rank, size = world()
    source = WeightSource()
    parameters: list[tuple[str, Any]] = list(module.named_parameters(remove_duplicate=False))
    for name, parameter in parameters:
        held = getattr(parameter, "ds_tensor", None)
        if held is None:
            source.add(name, parameter)
            continue
        if held.ds_numel * size < parameter.ds_numel or not held.numel():
            raise BridgeError(
                f"`{name}`: this rank has {held.numel()} of {parameter.ds_numel} elements, which {size} ranks share."
                " HINT: partitions must be over all ranks, and not on NVMe."
            )
        source.add_flat(name, held.detach(), begin=rank * held.ds_numel, shape=tuple(parameter.ds_shape))
    for name, buffer in module.named_buffers():
        if name in module.state_dict(keep_vars=True):
            source.add(name, buffer)
    return source
