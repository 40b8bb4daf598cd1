"""Places roles and processes on nodes: a pure function from configuration and hostnames to a layout, without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from launcher.common.errors import AllocationError
from launcher.config.schema import Config
from launcher.layout.environment import engine_env, trainer_env
from launcher.layout.model import Layout, Node, Process, Replica, Role
from launcher.layout.shape import Shape, planned_hostnames, shape_of

PYTHON = "python"
"""First word of an argv that stands for the agent's own interpreter; the agent puts its ``sys.executable`` there."""

REFERENCE_TRAINER = (PYTHON, "-m", "launcher.trainers.grpo")
ENGINE_SERVER = (PYTHON, "-m", "launcher.inference.server")


def plan(config: Config, hostnames: Sequence[str] | None = None) -> Layout:
    """The layout of ``config``, which must be free of problems (:func:`launcher.config.check`).

    Args:
        config: the run.
        hostnames: in nodelist order, spares last; ``layout.hostnames`` if not given, else ``node-0000``, ``node-0001``,
            ...

    Raises:
        AllocationError: there are more or fewer hostnames than ``layout.nodes`` and ``layout.spares`` together.
    """
    shape = shape_of(config)
    everybody = _hostnames(config, hostnames)
    hosts, spares = everybody[: shape.nodes], everybody[shape.nodes :]
    replicas = _replicas(config, shape)
    processes: list[list[Process]] = [[] for _ in hosts]
    _place_trainers(config, shape, processes)
    _place_engines(config, shape, replicas, processes)
    nodes = tuple(
        Node(
            node_rank=node_rank,
            hostname=hostname,
            role=Role.TRAINER if node_rank < shape.trainer_nodes else Role.INFERENCE,
            role_rank=_role_rank(shape, node_rank),
            processes=tuple(processes[node_rank]),
        )
        for node_rank, hostname in enumerate(hosts)
    )
    return Layout(
        nodes=nodes,
        replicas=replicas,
        gpus_per_node=config.layout.gpus_per_node,
        device=config.layout.device,
        world_size=shape.trainer_nodes * shape.workers_per_node,
        local_world_size=shape.workers_per_node,
        spares=tuple(spares),
    )


def engine_args(config: Config) -> tuple[str, ...]:
    """vLLM's arguments that all engines have in common, in vLLM's spelling; ``inference.args`` last."""
    inference = config.inference
    args = [
        *("--tensor-parallel-size", str(inference.tensor_parallel_size)),
        *("--pipeline-parallel-size", str(inference.pipeline_parallel_size)),
        *("--dtype", config.model.dtype),
        *("--max-model-len", str(config.model.max_length)),
    ]
    if inference.max_num_seqs is not None:
        args += ["--max-num-seqs", str(inference.max_num_seqs)]
    if inference.enforce_eager:
        args += ["--enforce-eager"]
    if inference.gpu_memory_utilization is not None:
        args += ["--gpu-memory-utilization", str(inference.gpu_memory_utilization)]
    return (*args, *inference.args)


def _hostnames(config: Config, hostnames: Sequence[str] | None) -> Sequence[str]:
    hosts = hostnames if hostnames is not None else planned_hostnames(config)
    spares = config.layout.spares
    total = config.layout.nodes + spares
    if hosts is None:
        return [f"node-{node_rank:04d}" for node_rank in range(total)]
    if len(hosts) != total:
        raise AllocationError(
            f"`layout.nodes` ({config.layout.nodes}){f' + `layout.spares` ({spares})' if spares else ''} does not match"
            f" the {len(hosts)} nodes given ({', '.join(hosts[:8])}{', ...' if len(hosts) > 8 else ''})."
            f" HINT: ask for {total} nodes, or set `layout.nodes={len(hosts) - spares}`."
        )
    return hosts


def _role_rank(shape: Shape, node_rank: int) -> int:
    return node_rank if node_rank < shape.trainer_nodes else node_rank - shape.trainer_nodes


def _replicas(config: Config, shape: Shape) -> tuple[Replica, ...]:
    first_node = shape.nodes - shape.engine_nodes
    span, per_node = shape.nodes_per_replica, shape.replicas_per_node
    # The nodes of a local run are one machine with one set of ports, so there ports are counted over all nodes.
    ports_per_host = shape.replicas if config.cluster.kind == "local" else per_node
    return tuple(
        Replica(
            index=index,
            node_ranks=tuple(range(start := first_node + index // per_node * span, start + span)),
            port=config.inference.base_port + index % ports_per_host,
            tensor_parallel_size=config.inference.tensor_parallel_size,
            pipeline_parallel_size=config.inference.pipeline_parallel_size,
        )
        for index in range(shape.replicas)
    )


def _place_trainers(config: Config, shape: Shape, processes: list[list[Process]]) -> None:
    argv = tuple(config.trainer.command) if config.trainer.command else REFERENCE_TRAINER
    common = trainer_env(config, shape)
    cuda = config.layout.device == "cuda"
    workers = shape.workers_per_node
    gpus = [(local_rank,) if cuda else () for local_rank in range(workers)]
    local_ranks = [str(local_rank) for local_rank in range(workers)]
    for node_rank in range(shape.trainer_nodes):
        # Trainer nodes come first, so their node rank is their role rank and torchrun's GROUP_RANK.
        on_node = {**common, **_ranks_of_node(shape, node_rank), "GROUP_RANK": str(node_rank)}
        for local_rank in range(workers):
            rank = node_rank * workers + local_rank
            processes[node_rank].append(
                Process(
                    name=f"trainer-{rank:04d}",
                    role=Role.TRAINER,
                    node_rank=node_rank,
                    local_rank=local_rank,
                    rank=rank,
                    replica_rank=0,
                    gpus=gpus[local_rank],
                    argv=argv,
                    # torchelastic's ROLE_RANK counts workers of the role, unlike this package's `role_rank`.
                    env={**on_node, "RANK": str(rank), "ROLE_RANK": str(rank), "LOCAL_RANK": local_ranks[local_rank]},
                )
            )


def _place_engines(config: Config, shape: Shape, replicas: tuple[Replica, ...], processes: list[list[Process]]) -> None:
    common = engine_env(config, shape)
    args = engine_args(config)
    cuda = config.layout.device == "cuda"
    strict_port = ("--strict-port",) if config.inference.strict_ports else ()
    size_on_node = shape.engine_size // shape.nodes_per_replica
    for replica in replicas:
        slot = replica.index % shape.replicas_per_node
        first_gpu = shape.first_engine_gpu + slot * size_on_node
        gpus = tuple(range(first_gpu, first_gpu + size_on_node)) if cuda else ()
        for replica_rank, node_rank in enumerate(replica.node_ranks):
            env = {**common, **_ranks_of_node(shape, node_rank)}
            if cuda:
                env["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, gpus))
            processes[node_rank].append(
                Process(
                    name=f"inference-{replica.index}" + (f".{replica_rank}" if replica_rank else ""),
                    role=Role.INFERENCE,
                    node_rank=node_rank,
                    local_rank=slot,
                    rank=replica.index,
                    replica_rank=replica_rank,
                    gpus=gpus,
                    argv=(
                        *ENGINE_SERVER,
                        *("--replica", str(replica.index), "--replica-rank", str(replica_rank)),
                        *strict_port,
                        *_span_args(shape, replica_rank),
                        *args,
                    ),
                    env=env,
                )
            )


def _span_args(shape: Shape, replica_rank: int) -> tuple[str, ...]:
    """vLLM's arguments for one node of a replica over several; the master's address is added at run time."""
    if shape.nodes_per_replica == 1:
        return ()
    headless = ("--headless",) if replica_rank else ()
    return ("--nnodes", str(shape.nodes_per_replica), "--node-rank", str(replica_rank), *headless)


def _ranks_of_node(shape: Shape, node_rank: int) -> Mapping[str, str]:
    return {"LAUNCHER_NODE_RANK": str(node_rank), "LAUNCHER_ROLE_RANK": str(_role_rank(shape, node_rank))}
