"""The numbers behind a layout: how many nodes, GPUs and processes each role has, before anyone is named."""

from __future__ import annotations

from dataclasses import dataclass

from launcher.config.schema import Config
from launcher.slurm.nodelist import expand_nodelist


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Sizes of a run. They make sense only for a configuration without problems."""

    nodes: int
    trainer_nodes: int
    """Nodes that train: the first ones, or in local mode all."""

    engine_nodes: int
    """Nodes that run engines: the last ones, or in local mode all."""

    trainer_gpus: int
    """GPUs of a training node that its trainer ranks may use: those from index 0 on."""

    engine_gpus: int
    """GPUs of an engine node that its engines may use: the last ones of the node."""

    first_engine_gpu: int
    workers_per_node: int
    engine_size: int
    """GPUs of one replica: tensor times pipeline parallel size."""

    nodes_per_replica: int
    replicas_per_node: int
    """1 when a replica spans nodes."""

    replicas: int
    local_mode: bool


def shape_of(config: Config) -> Shape:
    """The sizes in ``config``; never raises, so that a wrong configuration can be described too."""
    layout, inference = config.layout, config.inference
    local_mode = layout.inference_nodes == 0
    trainer_gpus = engine_gpus = layout.gpus_per_node
    first_engine_gpu = 0
    if local_mode and layout.colocate == "split":
        asked = layout.colocate_inference_gpus
        engine_gpus = layout.gpus_per_node // 2 if asked is None else asked
        trainer_gpus = first_engine_gpu = layout.gpus_per_node - engine_gpus
    engine_nodes = layout.nodes if local_mode else layout.inference_nodes
    size = inference.tensor_parallel_size * inference.pipeline_parallel_size
    if size > engine_gpus:
        nodes_per_replica, replicas_per_node = -(-size // max(engine_gpus, 1)), 1
    else:
        asked = inference.replicas_per_node
        nodes_per_replica, replicas_per_node = 1, engine_gpus // max(size, 1) if asked is None else asked
    workers = config.trainer.workers_per_node
    return Shape(
        nodes=layout.nodes,
        trainer_nodes=layout.nodes if local_mode else layout.nodes - layout.inference_nodes,
        engine_nodes=engine_nodes,
        trainer_gpus=trainer_gpus,
        engine_gpus=engine_gpus,
        first_engine_gpu=first_engine_gpu,
        workers_per_node=trainer_gpus if workers is None else workers,
        engine_size=size,
        nodes_per_replica=nodes_per_replica,
        replicas_per_node=replicas_per_node,
        replicas=engine_nodes // nodes_per_replica * replicas_per_node,
        local_mode=local_mode,
    )


def planned_hostnames(config: Config) -> list[str] | None:
    """The names in ``layout.hostnames``, each of which may be a node list as SLURM writes it; None without any.

    Raises:
        ValueError: one of them is no node list.
    """
    if config.layout.hostnames is None:
        return None
    return [name for text in config.layout.hostnames for name in expand_nodelist(text)]
