"""Whether roles, ranks, engines and ports fit on the requested nodes."""

from __future__ import annotations

from collections.abc import Iterator

from launcher.config.schema import Config
from launcher.layout.shape import Shape, planned_hostnames, shape_of


def geometry_problems(config: Config) -> Iterator[str]:
    """Settings that do not fit together. Call it only when each number by itself is in range."""
    shape = shape_of(config)
    yield from _hostnames(config)
    roles = [*_roles(config), *_colocation(config)]
    yield from roles
    if not roles:
        yield from _workers(config, shape)
        engines = list(_engines(config, shape))
        yield from engines
        if not engines:
            yield from _ports(config, shape)
            yield from _min_replicas(config, shape)


def _hostnames(config: Config) -> Iterator[str]:
    nodes, spares = config.layout.nodes, config.layout.spares
    try:
        hosts = planned_hostnames(config)
    except ValueError as error:
        yield f"`layout.hostnames` ({','.join(config.layout.hostnames or ())}) cannot be read: {error}."
        return
    if hosts is None:
        return
    if len(hosts) != nodes + spares:
        more = f" + `layout.spares` ({spares})" if spares else ""
        yield (
            f"`layout.hostnames` ({len(hosts)} names) does not match `layout.nodes` ({nodes}){more}."
            f" HINT: set `layout.nodes={max(len(hosts) - spares, 1)}`, or give one name per node."
        )
    if twice := sorted({host for host in hosts if hosts.count(host) > 1}):
        yield f"`layout.hostnames` names {', '.join(twice)} more than once. HINT: give each node a name of its own."


def _roles(config: Config) -> Iterator[str]:
    nodes, infer = config.layout.nodes, config.layout.inference_nodes
    if infer > nodes:
        yield (
            f"`layout.inference_nodes` ({infer}) is more than `layout.nodes` ({nodes})."
            f" HINT: set `layout.nodes={infer + 1}` or more (the nodes that train count too), or lower"
            " `layout.inference_nodes`."
        )
    elif infer == nodes:
        yield (
            f"`layout.inference_nodes` ({infer}) leaves no node of `layout.nodes` ({nodes}) to train."
            f" HINT: set `layout.nodes={infer + 1}` or more, or `layout.inference_nodes=0` to train and serve on the"
            " same nodes."
        )


def _colocation(config: Config) -> Iterator[str]:
    layout = config.layout
    asked, gpus = layout.colocate_inference_gpus, layout.gpus_per_node
    if layout.inference_nodes > 0:
        if asked is not None:
            yield (
                f"`layout.colocate_inference_gpus` ({asked}) has no meaning with `layout.inference_nodes`"
                f" ({layout.inference_nodes}). HINT: leave it out, or set `layout.inference_nodes=0`."
            )
    elif layout.colocate == "share":
        if asked is not None:
            yield (
                f"`layout.colocate_inference_gpus` ({asked}) contradicts `layout.colocate` (share), where every GPU"
                " serves. HINT: leave it out, or set `layout.colocate=split`."
            )
    elif gpus == 1:
        yield (
            "`layout.colocate` (split) cannot divide `layout.gpus_per_node` (1) between trainer and engines."
            " HINT: set `layout.colocate=share`, `layout.gpus_per_node=2` or more, or `layout.inference_nodes=1`."
        )
    elif asked is not None and asked >= gpus:
        yield (
            f"`layout.colocate_inference_gpus` ({asked}) leaves no GPU of `layout.gpus_per_node` ({gpus}) to train."
            f" HINT: set `layout.colocate_inference_gpus={gpus - 1}` or less, or `layout.colocate=share`."
        )


def _workers(config: Config, shape: Shape) -> Iterator[str]:
    asked = config.trainer.workers_per_node
    if asked is not None and asked > shape.trainer_gpus:
        yield (
            f"`trainer.workers_per_node` ({asked}) is more than the {shape.trainer_gpus} GPUs that train on each node"
            f" (`layout.gpus_per_node` {config.layout.gpus_per_node}). HINT: set"
            f" `trainer.workers_per_node={shape.trainer_gpus}` or leave it out."
        )


def _engines(config: Config, shape: Shape) -> Iterator[str]:
    inference, available = config.inference, shape.engine_gpus
    size = shape.engine_size
    sizes = f"`inference.tensor_parallel_size` ({inference.tensor_parallel_size})"
    if inference.pipeline_parallel_size > 1:
        sizes += f" * `inference.pipeline_parallel_size` ({inference.pipeline_parallel_size}) = {size}"
    where = f"the {available} GPUs that serve on each node (`layout.gpus_per_node` {config.layout.gpus_per_node})"
    asked = inference.replicas_per_node
    if size <= available:
        if asked is None and available % size:
            yield (
                f"{sizes} does not divide {where}: {available % size} would idle. HINT: choose a divisor of"
                f" {available}, or accept that with `inference.replicas_per_node={available // size}`."
            )
        elif asked is not None and asked * size > available:
            yield (
                f"`inference.replicas_per_node` ({asked}) * {sizes} does not fit in {where}."
                f" HINT: set `inference.replicas_per_node={available // size}` or less."
            )
        return
    span = shape.nodes_per_replica
    if size % available:
        yield (
            f"{sizes} does not fit in {where}, and a replica over several nodes takes all of each."
            f" HINT: use a multiple of {available}, or at most {available}."
        )
    elif span > shape.engine_nodes:
        yield (
            f"{sizes} does not fit in the {shape.engine_nodes * available} GPUs that serve"
            f" (`layout.inference_nodes` {config.layout.inference_nodes}, {available} GPUs each): one replica takes"
            f" {span} nodes. HINT: {_more_nodes(config, span)}, or lower `inference.tensor_parallel_size`."
        )
    elif shape.engine_nodes % span:
        fitting = shape.engine_nodes - shape.engine_nodes % span
        yield (
            f"{sizes} makes each replica span {span} nodes, which does not divide the {shape.engine_nodes} that serve"
            f" (`layout.inference_nodes` {config.layout.inference_nodes}). HINT: {_more_nodes(config, fitting)}."
        )
    if asked is not None and asked > 1:
        yield (
            f"`inference.replicas_per_node` ({asked}) contradicts {sizes}, which spans {span} nodes per replica."
            " HINT: leave `inference.replicas_per_node` out."
        )


def _more_nodes(config: Config, engine_nodes: int) -> str:
    setting = "inference_nodes" if config.layout.inference_nodes else "nodes"
    return f"set `layout.{setting}={engine_nodes}`"


def _min_replicas(config: Config, shape: Shape) -> Iterator[str]:
    wanted = config.inference.min_replicas
    if wanted > shape.replicas:
        yield (
            f"`inference.min_replicas` ({wanted}) is more than the {shape.replicas} replicas of the layout."
            f" HINT: set `inference.min_replicas={shape.replicas}` or less."
        )


def _ports(config: Config, shape: Shape) -> Iterator[str]:
    count = shape.replicas if config.cluster.kind == "local" else shape.replicas_per_node
    base = config.inference.base_port
    if base <= 65535 < base + count - 1:
        yield (
            f"`inference.base_port` ({base}) + {count} engines on one machine go up to port {base + count - 1}, above"
            f" 65535. HINT: set `inference.base_port={65536 - count}` or less."
        )
