"""What a node learns from its environment, and what it says when that is not what was planned."""

from __future__ import annotations

import os
from collections.abc import Mapping

import pytest

from launcher.common.errors import AllocationError
from launcher.config import LayoutConfig
from launcher.node.context import NodeEnvironment, check_allocation, node_environment, own_address


@pytest.fixture(autouse=True)
def no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("SLURM", "LAUNCHER_", "CUDA_VISIBLE")):
            monkeypatch.delenv(name)


def slurm(monkeypatch: pytest.MonkeyPatch, **environ: str) -> NodeEnvironment:
    # submitit's parser looks at the process's own environment.
    found = {"SLURM_JOB_ID": "7", "SLURM_NODEID": "0", "SLURM_JOB_NODELIST": "node1", **environ}
    for name, value in found.items():
        monkeypatch.setenv(name, value)
    return node_environment()


@pytest.mark.parametrize(
    ("nodelist", "hostnames"),
    [
        ("gpu7", ["gpu7"]),
        ("gpu[7-9,11]", ["gpu7", "gpu8", "gpu9", "gpu11"]),
        ("rack[0-1]n[01-02]", ["rack0n01", "rack0n02", "rack1n01", "rack1n02"]),
        ("a-b-[098-101]", ["a-b-098", "a-b-099", "a-b-100", "a-b-101"]),
        ("login,gpu[1-2],cpu3", ["login", "gpu1", "gpu2", "cpu3"]),
        ("dgx[01-02].cluster.example", ["dgx01.cluster.example", "dgx02.cluster.example"]),
    ],
)
def test_nodelists_of_every_shape(monkeypatch: pytest.MonkeyPatch, nodelist: str, hostnames: list[str]) -> None:
    last = len(hostnames) - 1
    node = slurm(monkeypatch, SLURM_JOB_NODELIST=nodelist, SLURM_NODEID=str(last))
    assert list(node.hostnames) == hostnames
    assert (node.node_rank, node.hostname, node.job_id, node.is_local) == (last, hostnames[-1], "7", False)


def test_a_requeue_is_another_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    assert slurm(monkeypatch).attempt == 1
    assert slurm(monkeypatch, SLURM_RESTART_COUNT="2").attempt == 3


@pytest.mark.parametrize(
    ("environ", "gpus"),
    [
        ({}, None),
        ({"SLURM_GPUS_ON_NODE": "8", "CUDA_VISIBLE_DEVICES": "0"}, 8),
        ({"SLURM_STEP_GPUS": "0,1,2,3"}, 4),
        ({"CUDA_VISIBLE_DEVICES": "4,5"}, 2),
        ({"CUDA_VISIBLE_DEVICES": ""}, 0),
    ],
)
def test_gpus_by_whatever_names_them(
    monkeypatch: pytest.MonkeyPatch, environ: Mapping[str, str], gpus: int | None
) -> None:
    assert slurm(monkeypatch, **environ).gpus == gpus


def test_a_simulated_node() -> None:
    node = node_environment({"LAUNCHER_LOCAL_NODE_RANK": "1", "LAUNCHER_LOCAL_HOSTNAMES": "local-0,local-1"})
    assert (node.node_rank, node.hostname, node.attempt, node.job_id) == (1, "local-1", 1, None)
    assert own_address(node) == "127.0.0.1"


def test_outside_of_a_run_the_remedy_is_told() -> None:
    with pytest.raises(AllocationError, match="HINT: start it with `srun`"):
        node_environment({})


def test_the_chosen_address_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    node = slurm(monkeypatch)
    monkeypatch.setenv("LAUNCHER_ADDRESS", "10.1.2.3")
    assert own_address(node) == "10.1.2.3"


def layout(**fields: object) -> LayoutConfig:
    return LayoutConfig(**{"nodes": 2, "inference_nodes": 1, "gpus_per_node": 8, "device": "cuda", **fields})  # type: ignore[arg-type]


def test_a_smaller_allocation_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    node = slurm(monkeypatch, SLURM_JOB_NODELIST="gpu[1-3]")
    with pytest.raises(AllocationError) as raised:
        check_allocation(node, layout(nodes=4))
    assert str(raised.value) == (
        "The allocation has 3 nodes (gpu1, gpu2, gpu3), but `layout.nodes` is 4."
        " HINT: set `layout.nodes=3`, or ask SLURM for 4 nodes."
    )


def test_too_few_gpus_are_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    node = slurm(monkeypatch, SLURM_JOB_NODELIST="gpu[1-2]", SLURM_NODEID="1", SLURM_GPUS_ON_NODE="4")
    with pytest.raises(AllocationError, match=r"Node 1 \(gpu2\) was given 4 GPUs, but `layout.gpus_per_node` is 8\."):
        check_allocation(node, layout())
    check_allocation(node, layout(gpus_per_node=4))
    check_allocation(node, layout(device="cpu"))


def test_the_nodes_of_a_heterogeneous_job_are_numbered_component_after_component() -> None:
    # As a real SLURM sets it: the nodelist of the step is sorted by name, but node 0 is rack1n01.
    node = node_environment(
        {
            "SLURM_JOB_ID": "8",
            "SLURM_NODEID": "2",
            "SLURM_HET_SIZE": "2",
            "SLURM_JOB_ID_HET_GROUP_0": "8",
            "SLURM_JOB_NODELIST": "rack0n[01-02],rack1n[01-02]",
            "SLURM_JOB_NODELIST_HET_GROUP_0": "rack1n[01-02]",
            "SLURM_JOB_NODELIST_HET_GROUP_1": "rack0n[01-02]",
        }
    )
    assert node.hostnames == ("rack1n01", "rack1n02", "rack0n01", "rack0n02")
    assert node.hostname == "rack0n01"


def test_variables_of_another_heterogeneous_job_do_not_count() -> None:
    node = node_environment(
        {
            "SLURM_JOB_ID": "9",
            "SLURM_NODEID": "0",
            "SLURM_HET_SIZE": "2",
            "SLURM_JOB_ID_HET_GROUP_0": "8",
            "SLURM_JOB_NODELIST_HET_GROUP_0": "x",
            "SLURM_JOB_NODELIST": "a,b",
        }
    )
    assert node.hostnames == ("a", "b")


def test_an_element_of_an_array_has_the_id_that_the_tools_show() -> None:
    environ = {"SLURM_JOB_ID": "130", "SLURM_NODEID": "0", "SLURM_JOB_NODELIST": "a"}
    array = {"SLURM_ARRAY_JOB_ID": "123", "SLURM_ARRAY_TASK_ID": "4"}
    assert node_environment({**environ, **array}).job_id == "123_4"
