"""Trainer modules, vLLM models of them, and the comparison of what is in their parameters."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.model_loader import get_model_loader
from vllm.model_executor.model_loader.utils import initialize_model, process_weights_after_loading
from vllm.utils.torch_utils import set_default_torch_dtype

import launcher.bridge.vllm.plain_linear  # noqa: F401  registers the method
from launcher.bridge.codec.pack import pack, unpack
from launcher.bridge.plan import Engine, Location, Receiver, TensorSpec, place, reshard, verify_plan
from launcher.bridge.plan.sharding import fsdp
from launcher.bridge.protocol import Manifest, TensorEntry
from launcher.bridge.settings import Mode
from launcher.bridge.trainer.description import union
from launcher.bridge.trainer.module_state import description, weights
from launcher.bridge.vllm.weightmap import build_worker_map, live_tensors, loader, writer
from launcher.bridge.weightmap import LoadMethod, WeightMap, Writer, build_weight_map, requirements
from tests.integration.bridge.transfer_case import held

if TYPE_CHECKING:
    from tests.integration.engine.test_weightmap_vllm import Case

TRAINERS = 3


def trainer(case: Case, seed: int) -> Any:
    """The trainer's module; norms and biases are random, too, so that mixing them up shows."""
    from tests.integration.engine.test_weightmap_vllm import SIZES

    config = AutoConfig.for_model(case.architecture, **{**SIZES, **case.sizes}, tie_word_embeddings=case.tied)
    module = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, case.dtype))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return module


def engine_config(path: Path, size: int) -> Any:
    """vLLM's configuration of a model directory, as this project starts it on CPU."""
    return EngineArgs(
        model=str(path),
        dtype="bfloat16",
        tensor_parallel_size=size,
        quantization="launcher-plain",
        enforce_eager=True,
        max_model_len=64,
        skip_tokenizer_init=True,
    ).create_engine_config()


def engine_model(config: Any, path: Path, *, processed: bool = False) -> nn.Module:
    """The vLLM model of this rank with the weights of a checkpoint, loaded by vLLM itself."""
    config.model_config.model = str(path)
    # Layers register themselves by name; several models of one configuration live after each other here.
    config.compilation_config.static_forward_context.clear()
    with set_default_torch_dtype(torch.bfloat16):
        model: nn.Module = initialize_model(vllm_config=config)
        get_model_loader(config.load_config).load_weights(model, config.model_config)
        if processed:
            process_weights_after_loading(model, config.model_config, torch.device("cpu"))
    return model


def tensors_of(case: Case, module: nn.Module, path: Path) -> tuple[Manifest, dict[str, Tensor]]:
    """The trainer's tensors, with tied names as aliases."""
    if case.names == "module":
        manifest = union([(description(weights(module)), [0])], 1).manifest
        return manifest, {name: tensor.detach() for name, tensor in module.state_dict().items()}
    from safetensors.torch import load_file

    held = dict(load_file(str(path / "model.safetensors")))
    entries = [
        TensorEntry(name=n, shape=tuple(t.shape), dtype=str(t.dtype).removeprefix("torch.")) for n, t in held.items()
    ]
    return tuple(entries), held


def receive(weight_map: WeightMap, received: dict[str, Tensor], tensors: dict[str, Tensor]) -> None:
    """Three FSDP ranks send this worker what it needs, over a reshard plan."""
    specs = [TensorSpec(name=e.name, shape=e.shape, dtype=e.dtype) for e in weight_map.owners().values()]
    at = Location(node=0, gpu=0)
    engine = Engine(parameters=(requirements(weight_map),), locations=(at,))
    plan = reshard(place(specs, [(".*", fsdp(TRAINERS))]), [engine], [at] * TRAINERS)
    verify_plan(plan)
    for message in plan.incoming(Receiver(engine=0, rank=0)):
        shards = held(plan, tensors, message.sender)
        buffer = torch.empty(message.nbytes, dtype=torch.uint8)
        pack(message, shards, buffer)
        unpack(message, buffer, received)


def compare(case: Case, config: Any, paths: list[Path], module: nn.Module) -> dict[str, Any]:
    """Brings engines from version 0 to version 1 in every way, and compares with engines that loaded version 1."""
    manifest, tensors = tensors_of(case, module, paths[1])
    expected = snapshot(engine_model(config, paths[1]))
    model = engine_model(config, paths[0])
    before = snapshot(model)
    load: Any = model.load_weights
    weight_map = build_weight_map(load, live_tensors(model), manifest)
    found: dict[str, Any] = {
        "changed_by_tracing": different(snapshot(model), before),
        "different_before": different(before, expected),
        "methods": sorted(set(weight_map.methods.values())),
        "padded": [bound.name for bound in weight_map.parameters if bound.padding],
        "unused": list(weight_map.unused),
        "copies": len(weight_map.copies),
        "different": {},
    }
    for in_place in (False, True):
        model = engine_model(config, paths[0])
        write = Writer(weight_map, live_tensors(model), mode=Mode.INPLACE if in_place else Mode.SHADOW)
        receive(weight_map, write.received, tensors)
        write.commit()
        found["different"]["in place" if in_place else "writer"] = different(snapshot(model), expected)
    found |= compare_reloaded(config, paths, manifest, tensors, expected)
    return found | compare_processed(config, paths, manifest, tensors)


def compare_processed(config: Any, paths: list[Path], manifest: Manifest, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """The same on models as they serve, through the worker's own adapter."""
    expected = snapshot(engine_model(config, paths[1], processed=True))
    model = engine_model(config, paths[0], processed=True)
    weight_map = build_worker_map(model, config.model_config, manifest)
    write = writer(model, config.model_config, weight_map)
    receive(weight_map, write.received, tensors)
    write.commit()
    return {
        "different_processed": different(snapshot(model), expected),
        "methods_processed": sorted(set(weight_map.methods.values())),
    }


def compare_reloaded(
    config: Any, paths: list[Path], manifest: Manifest, tensors: dict[str, Tensor], expected: dict[str, Tensor]
) -> dict[str, Any]:
    """With the attention of one layer declared to be kept in another form: those modules go through vLLM's reload."""
    model = engine_model(config, paths[0])
    live = live_tensors(model)
    reasons = {name: "as if it were" for name in live if ".layers.0.self_attn.qkv_proj." in name}
    load: Any = model.load_weights
    weight_map = build_weight_map(load, live, manifest, processed=reasons)
    assert {name for name, method in weight_map.methods.items() if method is LoadMethod.RELOADED} == set(reasons)
    reload = loader(model, config.model_config, weight_map, layerwise=True)
    write = Writer(weight_map, live, load=reload)
    receive(weight_map, write.received, tensors)
    write.commit()
    return {
        "methods_reloaded": sorted(set(weight_map.methods.values())),
        "different_reloaded": different(snapshot(model), expected),
    }


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def different(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    """Names whose bytes are not the same."""
    assert a.keys() == b.keys()
    return [n for n in a if a[n].shape != b[n].shape or not torch.equal(_bits(a[n]), _bits(b[n]))]


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.uint8)
