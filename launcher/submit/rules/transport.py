"""Whether the bridge's transport can join trainers and engines where the layout puts them."""

from __future__ import annotations

from collections.abc import Iterator

from launcher.bridge.settings import UpdateKind
from launcher.bridge.transport.choose import ON_GPU_MEMORY, ON_ONE_HOST
from launcher.config.schema import Config


def problems(config: Config) -> Iterator[str]:
    """Pairs that the transport cannot join. ``auto`` can join every pair."""
    layout, transport = config.layout, config.bridge.transport
    if config.bridge.update == UpdateKind.DELTA and not config.bridge.verify:
        yield (
            "`bridge.update` (delta) builds each version on the one before, but `bridge.verify` is false, and nothing"
            " would notice if that were another one. HINT: set `bridge.verify=true`."
        )
    if transport in ON_GPU_MEMORY and layout.device == "cpu":
        yield (
            f"`bridge.transport` ({transport}) needs GPUs, but `layout.device` is cpu."
            " HINT: set `bridge.transport=auto` or `layout.device=cuda`."
        )
    elif transport == "nccl" and layout.inference_nodes == 0 and layout.colocate == "share":
        yield (
            "`bridge.transport` (nccl) refuses two processes on one GPU, as `layout.colocate` (share) has them."
            " HINT: set `bridge.transport=auto` or `layout.colocate=split`."
        )
    if transport in ON_ONE_HOST and config.cluster.kind != "local" and layout.nodes > 1:
        yield (
            f"`bridge.transport` ({transport}) works within one host, but `layout.nodes` is {layout.nodes}."
            " HINT: set `bridge.transport=auto`, which uses it wherever two ends are on one host."
        )
