"""Arguments that ``inference.args`` may not hold, and engine settings that contradict each other."""

from __future__ import annotations

from collections.abc import Iterator

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


def problems(config: Config) -> Iterator[str]:
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
