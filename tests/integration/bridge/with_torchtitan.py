"""torchtitan's Llama on four ranks, FSDP2 x TP as it parallelizes: an engine gets what torchtitan's own adapter makes.

Needs torchtitan and what that imports, which no check installs: ``python -m tests.integration.bridge.with_torchtitan``.
"""

from __future__ import annotations

import time
from importlib import import_module
from typing import Any

import torch

from launcher.bridge.sources.torchtitan import torchtitan_source
from launcher.bridge.trainer.api import Bridge
from tests.integration.bridge.plain_replica import PlainReplica, State, serving
from tests.integration.bridge.rank_process import rank_group

TOKEN = "a token of the tests"


def configured(fuse_qkv: bool) -> Any:
    """Two layers with fewer key/value heads than heads."""
    from torchtitan.models.llama3 import _build_llama3_layers, llama3_configs

    config = llama3_configs["debugmodel"]("flex")
    config.layers = _build_llama3_layers(
        n_layers=2,
        dim=config.dim,
        n_heads=16,
        n_kv_heads=4,
        hidden_dim=256,
        rope=config.layers[0].attention.rope,
        fuse_qkv=fuse_qkv,
        attn_backend="flex",
    )
    return config


def built(config: Any, version: int) -> Any:
    """A model with the same values on every rank."""
    model = config.build()
    generator = torch.Generator().manual_seed(version)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def expected(fuse_qkv: bool, version: int) -> State:
    """The checkpoint, as torchtitan's adapter writes it."""
    from torchtitan.models.llama3.state_dict_adapter import Llama3StateDictAdapter

    config = configured(fuse_qkv)
    return dict(Llama3StateDictAdapter(config, None).to_hf(dict(built(config, version).state_dict())))


def publish(bridge: Bridge, _rank: int, fuse_qkv: bool, version: int) -> dict[str, Any]:
    """Parallelizes as torchtitan does, and publishes."""
    from torchtitan.tools import utils

    utils.device_type = "cpu"
    from torch.distributed.fsdp import fully_shard
    from torchtitan.distributed import ParallelDims
    from torchtitan.models.llama3.state_dict_adapter import Llama3StateDictAdapter

    dims = ParallelDims(
        dp_replicate=1, dp_shard=2, cp=1, tp=2, pp=1, ep=1, world_size=4, spmd_backend="partial_dtensor"
    )
    config = configured(fuse_qkv)
    model = built(config, version)
    model.parallelize(dims)
    for layer in model.layers.values():
        fully_shard(layer, mesh=dims.get_mesh("fsdp"))
    fully_shard(model, mesh=dims.get_mesh("fsdp"))
    source = torchtitan_source(model, Llama3StateDictAdapter(config, None))
    report = bridge.publish(source, version)
    placed = {str(getattr(parameter, "placements", None)) for parameter in model.parameters()}
    return {"seconds": report.seconds, "bytes": report.bytes, "placements": sorted(placed)}


def main() -> None:
    """Publishes both ways of keeping query, key and value, and compares."""
    # Not ``__main__``, which is another module on the ranks.
    here = import_module("tests.integration.bridge.with_torchtitan")
    replica = PlainReplica({}, {})
    with serving(replica, TOKEN) as url, rank_group(4, url, TOKEN) as ranks:
        for version, fuse_qkv in enumerate((False, True), start=1):
            wanted = expected(fuse_qkv, version)
            replica.live = {name: torch.zeros_like(tensor) for name, tensor in wanted.items()}
            begin = time.monotonic()
            answers = ranks.run(here.publish, fuse_qkv, version)
            assert all("value" in answer for answer in answers), answers
            wrong = [name for name, tensor in wanted.items() if not torch.equal(replica.live[name], tensor)]
            print(f"fused: {fuse_qkv}; tensors: {len(wanted)}; wrong: {wrong}; {answers[0]['value']}")
            print(f"  {time.monotonic() - begin:.1f} s in all")
            assert not wrong


if __name__ == "__main__":
    main()
