"""The cluster that other tests stand on is a real one, and leaves nothing behind."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import submitit

from tests.slurm_cluster.cluster import ROOT, SlurmCluster
from tests.slurm_cluster.processes import descendants
from tests.slurm_cluster.spec import (
    ClusterError,
    ClusterSpec,
    Isolation,
    expand_hostlist,
    missing_requirements,
)

HOSTS = ["rack0n01", "rack0n02", "rack1n01", "rack1n02"]


@pytest.fixture
def cluster(slurm: SlurmCluster) -> Iterator[SlurmCluster]:
    """The shared cluster, emptied afterwards."""
    yield slurm
    slurm.cancel_all()


def remains(directory: Path) -> list[str]:
    """Everything on this machine that still has to do with a cluster's directory."""
    left = [str(directory)] if directory.exists() else []
    left += [line for line in Path("/proc/self/mounts").read_text().splitlines() if str(directory) in line]
    for process in descendants(1):
        if str(directory) in process.command or str(directory) in process.environment.get("SLURM_CONF", ""):
            left.append(f"{process.pid}: {process.command}")
    return left


def submit(cluster: SlurmCluster, *options: str, script: str) -> str:
    """Job id of a batch script."""
    return cluster.run(["sbatch", "--parsable", "--output=/dev/null", *options, f"--wrap={script}"]).stdout.strip()


def test_srun_reaches_every_node_by_its_own_name(cluster: SlurmCluster) -> None:
    resolve = ["getent", "hosts", "rack1n02"]
    address = cluster.run(resolve).stdout.split()[0]
    assert address.startswith("127.77.")
    done = cluster.run(["srun", "--nodes=4", "sh", "-c", f"echo $(hostname) $({' '.join(resolve)})"])
    assert sorted(done.stdout.splitlines()) == [f"{host} {address} rack1n02" for host in HOSTS]


def test_tasks_see_their_gpus(cluster: SlurmCluster) -> None:
    show = ["sh", "-c", "echo $CUDA_VISIBLE_DEVICES $SLURM_GPUS_ON_NODE"]
    whole = cluster.run(["srun", "--nodes=2", "--gpus-per-node=8", *show])
    assert whole.stdout.splitlines() == ["0,1,2,3,4,5,6,7 8"] * 2
    single = cluster.run(
        ["srun", "--nodes=1", "--ntasks=8", "--gpus-per-task=1", "sh", "-c", "echo $CUDA_VISIBLE_DEVICES"]
    )
    assert sorted(single.stdout.split()) == list("01234567")


def test_submitit_runs_one_task_per_node(
    cluster: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in cluster.variables.items():
        monkeypatch.setenv(name, value)
    executor = submitit.SlurmExecutor(folder=tmp_path)
    executor.update_parameters(nodes=4, ntasks_per_node=1, time=5, gpus_per_node=8)
    job = executor.submit(socket.gethostname)
    cluster.wait_job(job.job_id, timeout_s=30)
    assert job.results() == HOSTS


def test_two_jobs_share_the_nodes(cluster: SlurmCluster) -> None:
    first, second = (submit(cluster, "--nodes=4", "--gpus-per-node=4", script="srun sleep 60") for _ in range(2))
    cluster.wait_job(first, ["RUNNING"], timeout_s=10)
    cluster.wait_job(second, ["RUNNING"], timeout_s=10)


def test_requeue_starts_the_job_again(cluster: SlurmCluster, tmp_path: Path) -> None:
    script = f'echo $SLURM_RESTART_COUNT >> {tmp_path}/starts; test -n "$SLURM_RESTART_COUNT" || srun sleep 60'
    job = submit(cluster, "--nodes=4", "--requeue", script=script)
    cluster.wait_job(job, ["RUNNING"])
    cluster.run(["scontrol", "requeue", job])
    cluster.wait_job(job, ["COMPLETED"])
    assert (tmp_path / "starts").read_text().split() == ["1"]


def test_orphans_are_seen_and_end_with_the_job(cluster: SlurmCluster) -> None:
    detached = "(setsid setsid env -i sleep 300 &) ; sleep 300"
    job = submit(cluster, "--nodes=2", script=f"srun sh -c '{detached}'")
    cluster.wait_job(job, ["RUNNING"])
    deadline = time.monotonic() + 10
    while sum(process.name == "sleep" for process in cluster.node_processes("rack0n02")) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert not cluster.node_processes("rack1n01")
    with pytest.raises(ClusterError, match="sleep 300"):
        cluster.wait_empty("rack0n02", timeout_s=0)
    cluster.run(["scancel", job])
    cluster.wait_empty()


def test_a_failed_job_is_reported_at_once(cluster: SlurmCluster) -> None:
    job = submit(cluster, script="exit 3")
    with pytest.raises(ClusterError, match=r"FAILED, wanted COMPLETED(?s:.*)ExitCode=3:0"):
        cluster.wait_job(job, timeout_s=30)


def test_sacct_knows_the_end_of_a_job(slurm_accounting: SlurmCluster) -> None:
    job = submit(slurm_accounting, "--nodes=4", "--gpus-per-node=8", script="srun true")
    slurm_accounting.wait_job(job)
    query = ["sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={job}", "--format=State,AllocTRES"]
    deadline = time.monotonic() + 15
    while not (shown := slurm_accounting.run(query).stdout).startswith("COMPLETED|"):
        assert time.monotonic() < deadline, shown
        time.sleep(0.2)
    assert "gres/gpu=32" in shown


def test_clusters_side_by_side_do_not_meet(cluster: SlurmCluster) -> None:
    with SlurmCluster("a[1,3],b-x[09-10]", isolation="plain", gpus_per_node=0) as other:
        directory = other.directory
        assert directory is not None
        names = other.run(["sinfo", "--noheader", "--Node", "--partition=batch", "--format=%N"]).stdout.split()
        assert sorted(names) == ["a1", "a3", "b-x09", "b-x10"]
        there = submit(other, "--nodes=4", script="srun sleep 300")
        here = submit(cluster, "--nodes=4", script="srun sleep 300")
        other.wait_job(there, ["RUNNING"])
        cluster.wait_job(here, ["RUNNING"])
        assert all(job.job_id != here for job in other.jobs()) or here == there
    assert not remains(directory)
    assert cluster.job_state(here) == "RUNNING"


def test_separate_networks_have_a_localhost_each() -> None:
    with SlurmCluster("n[1-2]", isolation="net") as cluster:
        directory = cluster.directory
        assert directory is not None
        serve = f"{sys.executable} -m http.server --bind 127.0.0.1 8123"
        submit(cluster, "--nodelist=n1", "--oversubscribe", script=serve)
        ask = "import socket; print(socket.socket().connect_ex(('127.0.0.1', 8123)) == 0)"
        deadline = time.monotonic() + 20
        while answer(cluster, "n1", ask) != "True":
            assert time.monotonic() < deadline
        assert answer(cluster, "n2", ask) == "False"
        cluster.cut("n2")
        ping = "import socket; s = socket.socket(); s.settimeout(1); print(s.connect_ex(('n2', 1)))"
        assert cluster.run([sys.executable, "-c", ping]).stdout.strip() == "11"  # silence: EAGAIN after the timeout
        cluster.heal("n2")
        assert cluster.run([sys.executable, "-c", ping]).stdout.strip() == "111"  # refused, so reached
    assert not remains(directory)


def answer(cluster: SlurmCluster, node: str, program: str) -> str:
    """What a Python program prints on a node."""
    return cluster.run(["srun", f"--nodelist={node}", sys.executable, "-c", program]).stdout.strip()


def test_nodes_and_their_slurmd_can_die_and_come_back() -> None:
    with SlurmCluster("n[1-2]") as cluster:
        job = submit(cluster, "--nodes=2", script="srun sleep 300")
        cluster.wait_job(job, ["RUNNING"])
        cluster.crash_node("n2")
        assert not cluster.node_processes("n2")
        assert cluster.node_processes("n1")
        cluster.start_node("n2")
        cluster.run(["srun", "--nodelist=n2", "true"])
        os.kill(cluster.slurmd_pid("n1"), signal.SIGKILL)
        assert cluster.node_processes("n1")
        cluster.start_slurmd("n1")
        cluster.run(["srun", "--nodelist=n1", "true"])


@pytest.mark.parametrize("isolation", ["uts", "plain"])
def test_nothing_outlives_a_killed_owner(isolation: str) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-m", "tests.slurm_cluster", "--nodes=n[1-2]", f"--isolation={isolation}"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        text=True,
    )
    assert owner.stdout is not None
    conf = owner.stdout.readline().strip().partition("SLURM_CONF=")[2]
    directory = Path(conf).parents[1]
    sleep = ["srun", "--nodes=2", "sleep", "300"]
    with subprocess.Popen(sleep, env=os.environ | {"SLURM_CONF": conf}, stderr=subprocess.DEVNULL) as srun:
        assert remains(directory)
        owner.kill()
        owner.wait()
        deadline = time.monotonic() + 10
        while left := [line for line in remains(directory) if "srun --nodes=2" not in line]:  # that one is ours
            assert time.monotonic() < deadline, left
            time.sleep(0.05)
        srun.kill()
    owner.stdout.close()


def test_a_start_that_fails_midway_explains_itself_and_leaves_nothing() -> None:
    cluster = SlurmCluster("n[1-2]", options={"SelectType": "select/nonsense"})
    with pytest.raises(ClusterError, match=r"slurmctld(?s:.*)select/nonsense") as caught:
        cluster.start()
    directory = re.search(r"/tmp/slurm-[^/]+", str(caught.value))
    assert directory is not None
    assert not remains(Path(directory[0]))


@pytest.mark.parametrize("expression", ["", "n[1-", "n[1-2],n1", "-n"])
def test_bad_node_names_are_refused(expression: str) -> None:
    with pytest.raises(ClusterError, match="hostlist"):
        expand_hostlist(expression)


def test_what_the_machine_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = ClusterSpec(node_names=("n1",), isolation=Isolation.PLAIN, accounting=True)
    assert missing_requirements(spec) == []
    monkeypatch.setattr("tests.slurm_cluster.spec.SEARCH_PATH", "/nowhere")
    monkeypatch.setenv("PATH", "/nowhere")
    assert any("'slurmctld'" in line for line in missing_requirements(spec))
