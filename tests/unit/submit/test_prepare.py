"""The configuration that is submitted: defaults of the login shell, and a number of CPUs that fits the nodes."""

from __future__ import annotations

import pytest

from launcher.config import Config, compose
from launcher.slurm.site import NodeType, read_login_defaults, read_node_types
from launcher.submit.prepare import cpu_line, needs_cpus, with_default_cpus, with_login_defaults
from launcher.submit.resources import Options, request, requests, slurm_config

SHELL = {
    "SBATCH_PARTITION": "gpu",
    "SBATCH_ACCOUNT": "lab",
    "SBATCH_QOS": "high",
    "SBATCH_TIMELIMIT": "2-00:00:00",
    "SBATCH_CONSTRAINT": "ib",
    "SBATCH_RESERVATION": "course",
    "SBATCH_WCKEY": "rl",
    "SLURM_CLUSTERS": "alpha",
    "SBATCH_EXCLUSIVE": "1",
    "SBATCH_EXPORT": "NONE",
    "HOME": "/home/me",
}
GPU_NODES = (
    NodeType(partition="gpu", is_default=False, cpus=96, gpus=(("h100", 8),)),
    NodeType(partition="gpu", is_default=False, cpus=128, gpus=(("a100", 4),)),
    NodeType(partition="cpu", is_default=True, cpus=64, gpus=()),
)


def config_of(*overrides: str) -> Config:
    return compose(["+cluster=slurm", *overrides])


def options_of(config: Config) -> Options:
    return request(config, requests(config)[0])


def test_what_the_login_shell_exports_counts_where_a_setting_is_null() -> None:
    config, notes = with_login_defaults(config_of("cluster.qos=low"), read_login_defaults(SHELL))
    options = options_of(config)
    assert options["partition"] == "gpu"
    assert options["account"] == "lab"
    assert options["qos"] == "low"
    assert options["time"] == "2-00:00:00"
    assert options["constraint"] == "ib"
    assert options["reservation"] == "course"
    assert options["wckey"] == "rl"
    assert options["clusters"] == "alpha"
    assert "exclusive" in options
    assert "`cluster.partition` is gpu, from SBATCH_PARTITION" in notes
    assert not [note for note in notes if "SBATCH_QOS" in note]
    assert [note for note in notes if note.startswith("SBATCH_EXPORT: not used")]


def test_what_an_enclosing_job_exports_does_not_count() -> None:
    given = config_of()
    config, (note,) = with_login_defaults(given, read_login_defaults({**SHELL, "SLURM_JOB_ID": "12"}))
    assert config == given
    assert "SBATCH_PARTITION" in note
    assert "job 12" in note


def test_a_time_limit_has_a_default_and_may_be_the_partitions() -> None:
    assert options_of(config_of())["time"] == "04:00:00"
    assert options_of(config_of("cluster.time=UNLIMITED"))["time"] == "UNLIMITED"
    assert "time" not in options_of(config_of("cluster.time=partition"))


@pytest.mark.parametrize(
    ("overrides", "cpus"),
    [
        # Four of eight GPUs: half of the CPUs, and no more than fits every node that has the GPUs.
        (("layout=gpu", "layout.gpus_per_node=4", "cluster.partition=gpu"), 48),
        (("layout=gpu", "layout.gpus_per_node=4", "cluster.partition=gpu", "cluster.gpu_type=a100"), 128),
        (("layout=gpu", "layout.gpus_per_node=8", "cluster.partition=gpu"), 96),
        (("layout=gpu", "layout.gpus_per_node=4", "cluster.partition=gpu", "cluster.exclusive=true"), 96),
        (("layout=gpu", "cluster.partition=unknown"), None),
        (("layout=gpu", "cluster.partition=gpu", "cluster.cpus_per_task=7"), 7),
        (("layout=gpu", "cluster.partition=gpu", "+cluster.sbatch.cpus-per-gpu=6"), None),
        (("layout=cpu", "layout.gpus_per_node=2", "inference.replicas_per_node=2"), 8),
    ],
)
def test_a_job_asks_for_the_cpus_that_go_with_its_gpus(overrides: tuple[str, ...], cpus: int | None) -> None:
    config = with_default_cpus(config_of(*overrides), list(GPU_NODES))
    assert slurm_config(config).cpus_per_task == cpus
    line = cpu_line(config)
    assert line is not None
    assert (f"{cpus} per node" if cpus else "as many as SLURM gives") in line


def test_each_role_of_a_heterogeneous_job_has_its_own_number() -> None:
    given = config_of("layout=gpu", "cluster.trainer.partition=gpu", "cluster.inference.cpus_per_task=3")
    assert needs_cpus(given)
    config = with_default_cpus(given, list(GPU_NODES))
    assert [nodes.cluster.cpus_per_task for nodes in requests(config)] == [96, 3]


def test_nodes_are_read_from_sinfo() -> None:
    rows = [
        ("gpu*", "96+", "UNLIMITED", "gpu:h100:8(S:0-1),nvme:1"),
        ("old", "32", "16", "gpu:2"),
        ("cpu", "64", "UNLIMITED", "(null)"),
    ]
    text = "\n".join(f"{a:<80}{b:<16}{c:<16}{d:<400}" for a, b, c, d in rows)
    assert read_node_types(f"CLUSTER: alpha\n{text}\n") == [
        NodeType(partition="gpu", is_default=True, cpus=96, gpus=(("h100", 8),)),
        NodeType(partition="old", is_default=False, cpus=16, gpus=(("", 2),)),
        NodeType(partition="cpu", is_default=False, cpus=64, gpus=()),
    ]
