"""The layout: what holds for every configuration, and what the field expects of particular ones."""

from __future__ import annotations

import json
import time
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.common.errors import AllocationError
from launcher.config import (
    ClusterConfig,
    Config,
    InferenceConfig,
    LayoutConfig,
    LocalClusterConfig,
    SlurmClusterConfig,
    TrainerConfig,
)
from launcher.layout import Layout, Process, Role, layout_from_json, layout_to_json, plan, render_table
from launcher.submit.validate import problems

DIVISORS = {gpus: [size for size in range(1, gpus + 1) if gpus % size == 0] for gpus in range(1, 9)}


@st.composite
def configs(draw: st.DrawFn) -> Config:
    """Configurations without problems: all three sizes of replicas, both local modes, both clusters, both devices."""
    gpus = draw(st.integers(1, 8))
    device = draw(st.sampled_from(["cuda", "cpu"]))
    local_mode = draw(st.booleans())
    colocate = "share" if gpus == 1 else draw(st.sampled_from(["split", "share"]))
    engine_gpus, asked = gpus, None
    if local_mode and colocate == "split":
        asked = draw(st.none() | st.integers(1, gpus - 1))
        engine_gpus = gpus // 2 if asked is None else asked
    span = draw(st.sampled_from([1, 1, 2, 3]))
    engine_nodes = span * draw(st.integers(1, 3))
    nodes = engine_nodes if local_mode else engine_nodes + draw(st.integers(1, 4))
    tensor, pipeline = (engine_gpus, span) if span > 1 else (draw(st.sampled_from(DIVISORS[engine_gpus])), 1)
    replicas = draw(st.none() | st.integers(1, engine_gpus // tensor)) if span == 1 else None
    clusters: list[type[ClusterConfig]] = [LocalClusterConfig, SlurmClusterConfig]
    config = Config(
        cluster=draw(st.sampled_from(clusters))(),
        layout=LayoutConfig(
            nodes=nodes,
            inference_nodes=0 if local_mode else engine_nodes,
            gpus_per_node=gpus,
            device=device,
            colocate=colocate,
            colocate_inference_gpus=asked,
        ),
        trainer=TrainerConfig(workers_per_node=draw(st.none() | st.just(1))),
        inference=InferenceConfig(
            tensor_parallel_size=tensor,
            pipeline_parallel_size=pipeline,
            replicas_per_node=replicas,
            gpu_memory_utilization=0.4,
        ),
    )
    config.bridge.transport = "gloo"
    assert problems(config) == []
    return config


@given(config=configs())
def test_every_node_has_one_role_and_the_last_ones_infer(config: Config) -> None:
    layout = plan(config)
    infer = config.layout.inference_nodes

    assert [node.node_rank for node in layout.nodes] == list(range(config.layout.nodes))
    assert [node.role for node in layout.nodes] == [Role.TRAINER] * (config.layout.nodes - infer) + [
        Role.INFERENCE
    ] * infer
    for group in (layout.trainer_nodes, layout.inference_nodes):
        assert [node.role_rank for node in group] == list(range(len(group)))
    for node in layout.nodes:
        roles = {process.role for process in node.processes}
        assert roles == ({node.role} if infer else {Role.TRAINER, Role.INFERENCE})


@given(config=configs())
@pytest.mark.seed("D4")
def test_a_gpu_has_one_worker_at_most_unless_it_is_shared(config: Config) -> None:
    shared = config.layout.inference_nodes == 0 and config.layout.colocate == "share"
    for node in plan(config).nodes:
        for role in (Role.TRAINER, Role.INFERENCE) if shared else (None,):
            owned = [gpu for process in node.processes for gpu in process.gpus if role in (None, process.role)]
            assert len(owned) == len(set(owned))
            assert set(owned) <= set(range(config.layout.gpus_per_node))
        if config.layout.device == "cpu":
            assert all(process.gpus == () for process in node.processes)


@given(config=configs())
def test_ranks_are_complete_and_torchs_environment_agrees(config: Config) -> None:
    layout = plan(config)
    trainers = _of(layout, Role.TRAINER)

    assert [process.rank for process in trainers] == list(range(layout.world_size))
    for process in trainers:
        env = process.env
        assert int(env["RANK"]) == process.rank == process.node_rank * layout.local_world_size + process.local_rank
        assert int(env["LOCAL_RANK"]) == process.local_rank < layout.local_world_size == int(env["LOCAL_WORLD_SIZE"])
        assert int(env["WORLD_SIZE"]) == layout.world_size == len(trainers)
        assert int(env["GROUP_RANK"]) == int(env["LAUNCHER_ROLE_RANK"]) == process.node_rank
        if config.layout.device == "cuda":
            # set_device(LOCAL_RANK) in the worker finds the GPU that the layout gave it.
            visible = [int(gpu) for gpu in env["CUDA_VISIBLE_DEVICES"].split(",")]
            assert process.gpus == (visible[process.local_rank],)


@given(config=configs())
def test_replicas_are_complete_and_their_ports_free_of_collisions(config: Config) -> None:
    layout = plan(config)
    engines = _of(layout, Role.INFERENCE)
    size = config.inference.tensor_parallel_size * config.inference.pipeline_parallel_size

    assert [replica.index for replica in layout.replicas] == list(range(len(layout.replicas)))
    parts = [(replica.index, rank, node) for replica in layout.replicas for rank, node in enumerate(replica.node_ranks)]
    assert sorted((p.rank, p.replica_rank, p.node_rank) for p in engines) == sorted(parts)
    if config.layout.device == "cuda":
        gpus = Counter[int]()
        for process in engines:
            gpus[process.rank] += len(process.gpus)
            assert process.env["CUDA_VISIBLE_DEVICES"] == ",".join(map(str, process.gpus))
        assert set(gpus.values()) == {size}
    # The nodes of a local run are one machine.
    local = config.cluster.kind == "local"
    heads = [(0 if local else replica.node_ranks[0], replica.port) for replica in layout.replicas]
    assert len(heads) == len(set(heads))
    assert min(port for _, port in heads) == config.inference.base_port


@given(config=configs())
def test_names_are_unique_and_values_are_text(config: Config) -> None:
    processes = [process for node in plan(config).nodes for process in node.processes]

    assert len({process.name for process in processes}) == len(processes)
    for process in processes:
        assert all(type(word) is str for word in process.argv)
        assert all(type(value) is str for value in process.env.values())


@given(config=configs())
def test_json_gives_back_an_equal_layout(config: Config) -> None:
    layout = plan(config)

    assert layout_from_json(layout_to_json(layout)) == layout
    assert len(json.loads(layout_to_json(layout))["nodes"]) == config.layout.nodes


@given(config=configs())
@settings(max_examples=50)
def test_the_table_shows_every_configuration(config: Config) -> None:
    lines = render_table(plan(config)).splitlines()

    assert len(lines) <= config.layout.nodes + 3
    assert lines[0].startswith("node")
    assert f"{config.layout.nodes} node" in lines[-1]


def test_eight_gpus_per_node_and_tensor_parallel_two() -> None:
    config = _gpu(nodes=3, inference_nodes=1, tensor_parallel_size=2)
    layout = plan(config, ["rack0n01", "rack0n02", "rack1n01"])

    assert [node.hostname for node in layout.nodes] == ["rack0n01", "rack0n02", "rack1n01"]
    assert (layout.world_size, layout.local_world_size) == (16, 8)
    assert [(replica.port, replica.node_ranks) for replica in layout.replicas] == [
        (9000, (2,)),
        (9001, (2,)),
        (9002, (2,)),
        (9003, (2,)),
    ]
    first = layout.nodes[2].processes[1]
    assert first.name == "inference-1"
    assert first.gpus == (2, 3)
    assert first.argv[:7] == ("python", "-m", "launcher.inference.server", "--replica", "1", "--replica-rank", "0")
    assert _option(first, "--tensor-parallel-size") == "2"
    assert "--nnodes" not in first.argv
    for process in _of(layout, Role.TRAINER) + _of(layout, Role.INFERENCE):
        assert process.env["NUM_TRAINING_NODES"] == "2"
        assert process.env["NUM_INFERENCE_NODES"] == "1"
        assert process.env["INFER_TP"] == "2"
        assert process.env["LAUNCHER_ROLE"] == process.role.value


def test_infer_tp_is_unset_where_its_default_is_right() -> None:
    """Environment servers compute ``8 // os.environ.get("INFER_TP", 1)``, which any text breaks."""
    layout = plan(_gpu(nodes=2, inference_nodes=1, tensor_parallel_size=1))
    assert all("INFER_TP" not in process.env for process in _of(layout, Role.TRAINER))


def test_a_replica_over_two_nodes_has_a_head_and_a_headless_part() -> None:
    layout = plan(_gpu(nodes=5, inference_nodes=4, tensor_parallel_size=8, pipeline_parallel_size=2))

    assert [replica.node_ranks for replica in layout.replicas] == [(1, 2), (3, 4)]
    assert [replica.port for replica in layout.replicas] == [9000, 9000]
    head, part = layout.nodes[3].processes[0], layout.nodes[4].processes[0]
    assert (head.name, part.name) == ("inference-1", "inference-1.1")
    assert _option(head, "--nnodes") == _option(part, "--nnodes") == "2"
    assert (_option(head, "--node-rank"), _option(part, "--node-rank")) == ("0", "1")
    assert "--headless" in part.argv
    assert "--headless" not in head.argv


def test_local_mode_splits_the_gpus_with_the_last_ones_serving() -> None:
    layout = plan(_gpu(nodes=1, inference_nodes=0, colocate_inference_gpus=2))
    processes = layout.nodes[0].processes

    assert [process.gpus for process in processes if process.role is Role.TRAINER] == [(gpu,) for gpu in range(6)]
    assert [process.gpus for process in processes if process.role is Role.INFERENCE] == [(6,), (7,)]


def test_nodes_of_a_local_run_share_one_set_of_ports() -> None:
    config = Config(layout=LayoutConfig(nodes=3, inference_nodes=2, gpus_per_node=1, device="cpu"))

    assert [replica.port for replica in plan(config).replicas] == [9000, 9001]


def test_a_program_and_its_environment_are_taken_over() -> None:
    config = _gpu(nodes=2, inference_nodes=1)
    config.trainer.command = ["python", "train.py", "--x"]
    config.cluster.env = {"BOTH": "1", "CLASH": "cluster"}
    config.trainer.env = {"CLASH": "trainer", "OMP_NUM_THREADS": "4"}
    config.inference.args = ["--swap-space", "2"]
    layout = plan(config)
    trainer, engine = _of(layout, Role.TRAINER)[0], _of(layout, Role.INFERENCE)[0]

    assert trainer.argv == ("python", "train.py", "--x")
    assert (trainer.env["BOTH"], trainer.env["CLASH"], trainer.env["OMP_NUM_THREADS"]) == ("1", "trainer", "4")
    assert (engine.env["BOTH"], engine.env["CLASH"]) == ("1", "cluster")
    assert engine.argv[-2:] == ("--swap-space", "2")


def test_hostnames_must_be_as_many_as_nodes() -> None:
    with pytest.raises(AllocationError, match=r"`layout.nodes` \(2\) does not match the 3 nodes given"):
        plan(_gpu(nodes=2, inference_nodes=1), ["a", "b", "c"])


def test_planning_is_deterministic() -> None:
    config = _gpu(nodes=4, inference_nodes=2)

    assert layout_to_json(plan(config)) == layout_to_json(plan(config))


def test_many_nodes_make_few_rows() -> None:
    rows = render_table(plan(_gpu(nodes=4096, inference_nodes=1024))).splitlines()

    assert rows[1].split()[:2] == ["0-3071", "node-0000"]
    assert rows[2].split()[:2] == ["3072-4095", "node-3072"]
    assert len(rows) == 5


@pytest.mark.slow
def test_the_cost_of_planning_4096_nodes(capsys: pytest.CaptureFixture[str]) -> None:
    """Shown as a ratio to filling as many plain dicts of as many entries: a time limit would test the machine."""
    config = _gpu(nodes=4096, inference_nodes=1024)
    start = time.perf_counter()
    layout = plan(config)
    planning = time.perf_counter() - start

    entries = len(layout.nodes[0].processes[0].env)
    start = time.perf_counter()
    baseline = [{str(entry): str(index) for entry in range(entries)} for index in range(4096 * 8)]
    filling = time.perf_counter() - start

    assert sum(len(node.processes) for node in layout.nodes) == len(baseline)
    with capsys.disabled():
        print(
            f"\nplan of 4096 nodes x 8 GPUs: {planning:.2f} s,"
            f" {planning / filling:.1f} times filling {len(baseline)} dicts of {entries} entries"
        )


def _gpu(
    *,
    nodes: int,
    inference_nodes: int,
    tensor_parallel_size: int = 1,
    pipeline_parallel_size: int = 1,
    colocate_inference_gpus: int | None = None,
) -> Config:
    config = Config(
        cluster=SlurmClusterConfig(),
        layout=LayoutConfig(
            nodes=nodes, inference_nodes=inference_nodes, colocate_inference_gpus=colocate_inference_gpus
        ),
        inference=InferenceConfig(
            tensor_parallel_size=tensor_parallel_size, pipeline_parallel_size=pipeline_parallel_size
        ),
    )
    assert problems(config) == []
    return config


def _of(layout: Layout, role: Role) -> list[Process]:
    return [process for node in layout.nodes for process in node.processes if process.role is role]


def _option(process: Process, name: str) -> str:
    return process.argv[process.argv.index(name) + 1]
