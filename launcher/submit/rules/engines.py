"""Whether engines and trainer can use the model as asked, and the bridge can join them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from launcher.bridge.settings import UpdateKind
from launcher.bridge.transport.choose import ON_GPU_MEMORY, ON_ONE_HOST
from launcher.config.schema import Config

OWNED: dict[str, str] = {
    "--model": "set `model.path`",
    "--served-model-name": "the trainer asks for the model by the launcher's name for it",
    "--host": "engines listen on the node's address",
    "--port": "set `inference.base_port`",
    "--uds": "engines listen on the node's address",
    "--api-key": "each run makes a key of its own",
    "--root-path": "the trainer is told plain URLs",
    "--config": "give its options in `inference.args`",
    "--tensor-parallel-size": "set `inference.tensor_parallel_size`",
    "--pipeline-parallel-size": "set `inference.pipeline_parallel_size`",
    "--nnodes": "it follows from `layout.gpus_per_node` and the parallel sizes",
    "--node-rank": "it follows from the layout",
    "--headless": "it follows from the layout",
    "--master-addr": "it is known only at run time",
    "--master-port": "it is known only at run time",
    "--distributed-executor-backend": "the agent starts every node of a replica itself",
    "--dtype": "set `model.dtype`",
    "--max-model-len": "set `model.max_length`",
    "--max-num-seqs": "set `inference.max_num_seqs`",
    "--enforce-eager": "set `inference.enforce_eager`",
    "--no-enforce-eager": "set `inference.enforce_eager`",
    "--gpu-memory-utilization": "set `inference.gpu_memory_utilization`",
    "--device-memory-utilization": "set `inference.gpu_memory_utilization`",
    "--worker-extension-cls": "the bridge's receiver is it",
    "--weight-transfer-config": "the bridge moves the weights",
}
"""Arguments of vLLM's server that the launcher decides, and what to do instead."""

NOT_UPDATED: dict[str, str] = {
    "--enable-eplb": "experts move between the workers of an engine while it serves, and an update would not find them",
    "--calculate-kv-scales": "the scales of keys and values are computed once, from the weights of the start",
}
"""Arguments with which an engine could not be updated rightly, and why."""

OWNED_PREFIXES: dict[str, str] = {
    "--data-parallel-": "use more replicas (`layout.inference_nodes`, `inference.replicas_per_node`)",
    "--ssl-": "the trainer is told plain http:// URLs",
}

SHORT = {
    "-tp": "--tensor-parallel-size",
    "-pp": "--pipeline-parallel-size",
    "-n": "--nnodes",
    "-r": "--node-rank",
    "-dp": "--data-parallel-size",
    "-dpn": "--data-parallel-rank",
    "-dpr": "--data-parallel-start-rank",
    "-dpl": "--data-parallel-size-local",
    "-dpa": "--data-parallel-address",
    "-dpp": "--data-parallel-rpc-port",
    "-dpb": "--data-parallel-backend",
    "-dph": "--data-parallel-hybrid-lb",
    "-dpe": "--data-parallel-external-lb",
    "-dpm": "--data-parallel-multi-port-external-lb",
}


def engine_problems(config: Config) -> Iterator[str]:
    """What engines cannot be started with."""
    args = config.inference.args
    if args and not args[0].startswith("-"):
        yield (
            f"`inference.args` starts with {args[0]!r}, which is no option of vLLM. HINT: write options as on a command"
            " line, `inference.args=[--swap-space,2]`."
        )
    for arg in args:
        word = arg.partition("=")[0]
        name = SHORT.get(word, word.replace("_", "-"))
        remedy = OWNED.get(name)
        if remedy is None:
            remedy = next((why for prefix, why in OWNED_PREFIXES.items() if name.startswith(prefix)), None)
        if remedy is not None:
            yield f"`inference.args` ({word}) is decided by the launcher. HINT: leave it out; {remedy}."
        if name in NOT_UPDATED:
            yield f"`inference.args` ({word}): engines could not be updated: {NOT_UPDATED[name]}. HINT: leave it out."
        if name in ("--quantization", "-q") and config.layout.device == "cpu":
            yield (
                f"`inference.args` ({word}): on a CPU engines can be updated with the launcher's own method only."
                " HINT: leave it out."
            )
    yield from _device(config)


def _device(config: Config) -> Iterator[str]:
    layout = config.layout
    if layout.device == "cuda" and layout.inference_nodes == 0 and layout.colocate == "share":
        share = config.inference.gpu_memory_utilization
        if share is None or share >= 0.9:
            yield (
                f"`inference.gpu_memory_utilization` ({'null: 0.9' if share is None else share}) leaves the trainer no"
                " memory with `layout.colocate` (share). HINT: set `inference.gpu_memory_utilization=0.4`."
            )


WEIGHTS = ("*.safetensors", "*.bin")
TOKENIZER = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tokenizer_config.json", "tekken.json")


def model_problems(config: Config) -> Iterator[str]:
    """Uses of the model that cannot work, whichever model it is."""
    model, trainer = config.model, config.trainer
    if config.layout.device == "cpu" and model.dtype == "float16":
        yield (
            f"`model.dtype` ({model.dtype}) is not what vLLM computes in with `layout.device` (cpu)."
            " HINT: set `model.dtype=bfloat16` or `float32`."
        )
    if trainer.command is None:
        if trainer.max_new_tokens >= model.max_length:
            yield (
                f"`trainer.max_new_tokens` ({trainer.max_new_tokens}) leaves no room for a prompt in"
                f" `model.max_length` ({model.max_length}). HINT: set `model.max_length={2 * trainer.max_new_tokens}`"
                " or more."
            )
        if trainer.samples_per_prompt == 1:
            yield (
                "`trainer.samples_per_prompt` (1) gives every GRPO group an advantage of zero, so nothing is learned."
                " HINT: set `trainer.samples_per_prompt=2` or more."
            )
        from launcher.trainers.grpo.tasks import TASKS

        # One of the user's own, MODULE:CLASS, is imported on the nodes.
        if trainer.task not in TASKS and ":" not in trainer.task:
            tasks = ", ".join(TASKS)
            yield f"`trainer.task` ({trainer.task}) is not one of {tasks}. HINT: set `trainer.task={min(TASKS)}`."


def directory_problems(config: Config, path: str) -> Iterator[str]:
    """What is wrong with ``model.path`` as seen from this machine, and what its config.json does not allow."""
    directory = Path(path)
    if not path.strip():
        yield "`model.path` ('') is empty. HINT: name a directory, or set `model.path=null` for a tiny random model."
    elif path.startswith("~"):
        yield f"`model.path` ({path}) is not expanded. HINT: set `model.path={directory.expanduser()}`."
    elif not directory.exists():
        hint = "give the directory of a downloaded model"
        if path.count("/") == 1 and not path.startswith((".", "/")):
            hint = f"download it (`hf download {path} --local-dir DIR`) and set `model.path=DIR`"
        yield f"`model.path` ({path}) does not exist. HINT: {hint}."
    elif not (directory / "config.json").is_file():
        yield (
            f"`model.path` ({path}) holds no config.json, so it is no Hugging Face model. HINT: give the directory in"
            " which config.json lies."
        )
    else:
        yield from _contents(config, directory)


def _contents(config: Config, directory: Path) -> Iterator[str]:
    if not any(next(directory.glob(pattern), None) for pattern in WEIGHTS):
        yield f"`model.path` ({directory}) holds no weights (*.safetensors). HINT: download the whole model."
    if not any((directory / name).is_file() for name in TOKENIZER):
        yield f"`model.path` ({directory}) holds no tokenizer. HINT: save it with `tokenizer.save_pretrained(...)`."
    file = directory / "config.json"
    try:
        described = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        yield f"`model.path` ({directory}) has a config.json that cannot be read: {error}. HINT: download it again."
        return
    if not isinstance(described, dict):
        yield f"`model.path` ({directory}) has a config.json that is no object. HINT: download it again."
        return
    yield from _architecture(config, described.get("text_config") or described)


def _architecture(config: Config, described: dict[str, Any]) -> Iterator[str]:
    inference = config.inference
    heads, size = described.get("num_attention_heads"), inference.tensor_parallel_size
    if isinstance(heads, int) and size > 0 and heads % size:
        yield (
            f"`inference.tensor_parallel_size` ({size}) does not divide the {heads} attention heads of `model.path`"
            f" ({config.model.path}). HINT: choose a divisor of {heads}."
        )
    layers, stages = described.get("num_hidden_layers"), inference.pipeline_parallel_size
    if isinstance(layers, int) and stages > layers:
        yield (
            f"`inference.pipeline_parallel_size` ({stages}) is more than the {layers} layers of `model.path`"
            f" ({config.model.path}). HINT: set `inference.pipeline_parallel_size={layers}` or less."
        )
    longest = described.get("max_position_embeddings")
    if isinstance(longest, int) and config.model.max_length > longest and not described.get("rope_scaling"):
        yield (
            f"`model.max_length` ({config.model.max_length}) is more than the {longest} positions of `model.path`"
            f" ({config.model.path}). HINT: set `model.max_length={longest}` or less."
        )


def transport_problems(config: Config) -> Iterator[str]:
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
