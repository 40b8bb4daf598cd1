"""Jobs on a real SLURM, through submitit, as ``python -m launcher +cluster=slurm`` submits them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from launcher.events.reader import load_state
from tests.integration.jobs.launched import ROOT
from tests.integration.jobs.submitted import Submitted, submit
from tests.slurm_cluster.cluster import NODES, SlurmCluster

pytestmark = [pytest.mark.slurm, pytest.mark.engine]

RELEASE_S = 10
"""Within this time after the trainer's end a job must be COMPLETED."""

CANCELLED_CODE = 130
POISON = {
    "SLURM_JOB_ID": "1",
    "SLURM_NTASKS": "99",
    "SLURM_NODEID": "3",
    "SLURM_NNODES": "17",
    "SBATCH_PARTITION": "no-such-partition",
    "SBATCH_EXPORT": "NONE",
    "SQUEUE_PARTITION": "no-such-partition",
    "RANK": "7",
    "WORLD_SIZE": "8",
    "MASTER_ADDR": "192.0.2.1",
}
SLEEPS = 'trainer.command=[sleep,"600"]'


def release_seconds(cluster: SlurmCluster, job: Submitted) -> float:
    """From the last trainer rank's end to the end of the job, as SLURM dates it (to the second)."""
    shown = cluster.run(["scontrol", "show", "job", job.job_id]).stdout
    (end,) = [word.partition("=")[2] for word in shown.split() if word.startswith("EndTime=")]
    ended = max(
        e["time"] for e in job.events if e["event"] == "process" and e["role"] == "trainer" and "exit_code" in e
    )
    return datetime.fromisoformat(end).timestamp() - float(ended)


@pytest.fixture(scope="module")
def separated() -> Iterator[SlurmCluster]:
    """Nodes with networks of their own: one that takes localhost for an address of the others hangs there."""
    with SlurmCluster(NODES, isolation="net") as cluster:
        yield cluster


@pytest.fixture(scope="module")
def pair(separated: SlurmCluster, tmp_path_factory: pytest.TempPathFactory, model: Path) -> tuple[Submitted, Submitted]:
    """Two jobs at once on the same nodes: one that trains on all four, one beside it on two of them."""
    folder = tmp_path_factory.mktemp("pair")
    found: dict[str, Submitted] = {}

    def large() -> None:
        shape = ("layout.nodes=4", "layout.inference_nodes=2", "trainer.steps=3")
        found["large"] = submit(separated, folder, "name=large", "cluster.wait=true", *shape, env=POISON)

    def small() -> None:
        program = (
            "trainer.command="
            + json.dumps(["python", "-m", "tests.integration.jobs.ask_engines", str(folder / "answers")]),
        )
        place = ("cluster.nodelist='rack0n01,rack1n02'",)
        found["small"] = submit(
            separated, folder, "name=small", "cluster.wait=true", f"model.path={model}", *program, *place
        )

    threads = [threading.Thread(target=target) for target in (large, small)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found["large"], found["small"]


def test_the_job_completes_through_a_poisoned_environment(
    separated: SlurmCluster, pair: tuple[Submitted, Submitted]
) -> None:
    job, _ = pair
    assert job.code == 0, job.output
    assert separated.job_state(job.job_id) == "COMPLETED"
    assert "Completed after " in job.output
    separated.wait_empty()


def test_nodes_with_odd_names_have_their_roles_in_nodelist_order(pair: tuple[Submitted, Submitted]) -> None:
    job, _ = pair
    up = sorted((e for e in job.events if e["event"] == "node_up"), key=lambda e: int(e["node_rank"]))
    assert [(e["hostname"], e["role"], e["role_rank"]) for e in up] == [
        ("rack0n01", "trainer", 0),
        ("rack0n02", "trainer", 1),
        ("rack1n01", "inference", 0),
        ("rack1n02", "inference", 1),
    ]
    layout = json.loads((job.run_dir / "attempts/1/layout.json").read_text())
    assert [node["hostname"] for node in layout["nodes"]] == [e["hostname"] for e in up]


@pytest.mark.seed("D3")
def test_every_version_reaches_both_replicas(pair: tuple[Submitted, Submitted]) -> None:
    job, _ = pair
    state = load_state(job.run_dir)
    assert [step.version for step in state.steps] == [1, 2, 3]
    assert len(state.checks) >= 2
    assert all(check.ok for check in state.checks)
    assert {"inference-0", "inference-1"} <= {word for check in state.checks for word in check.name.split()}


def test_the_nodes_are_released_soon_after_the_trainer_finished(
    separated: SlurmCluster, pair: tuple[Submitted, Submitted]
) -> None:
    for job in pair:
        seconds = release_seconds(separated, job)
        print(f"job {job.job_id} was over {seconds:.1f} s after its trainer")
        assert seconds < RELEASE_S


def test_engines_end_in_order_when_they_drain(pair: tuple[Submitted, Submitted]) -> None:
    for job in pair:
        ended = [e for e in job.events if e["event"] == "process" and e["state"] == "ended"]
        engines = {e["name"]: e["exit_code"] for e in ended if e["role"] == "inference"}
        assert engines
        assert not any(engines.values()), engines


@pytest.mark.seed("D27")
def test_two_jobs_on_the_same_nodes_do_not_disturb_each_other(
    separated: SlurmCluster, pair: tuple[Submitted, Submitted]
) -> None:
    large, small = pair
    assert small.code == 0, small.output
    assert separated.job_state(small.job_id) == "COMPLETED"
    times = [(job.event("attempt")["time"], job.event("finished")["time"]) for job in pair]
    assert max(begin for begin, _ in times) < min(end for _, end in times), "they did not run at the same time"
    urls = {e["replica"]: e["url"] for e in large.events if e["event"] == "engine_ready"}
    (answer,) = json.loads((small.run_dir.parent.parent / "answers").read_text())
    # Both engines of node rack1n02 wanted port 9000; each trainer was told, and has reached, its own.
    assert urls[1].rpartition(":")[0] == answer["url"].rpartition(":")[0]
    assert answer["url"] not in urls.values()
    assert (answer["mine"], answer["wrong"]) == (200, 401)


def test_the_run_directory_tells_no_secret(pair: tuple[Submitted, Submitted]) -> None:
    job, _ = pair
    script = (job.run_dir / "job.sh").read_text()
    assert "LAUNCHER_TOKEN=$(" in script
    assert subprocess.run(["bash", "-n", job.run_dir / "job.sh"], check=False).returncode == 0
    for path in job.run_dir.rglob("*"):
        if path.is_file() and path.suffix in {".log", ".yaml", ".json", ".jsonl", ".sh", ".out"}:
            text = path.read_text(errors="replace")
            assert "Bearer" not in text, path
            assert "VLLM_API_KEY=" not in text, path


def test_a_plain_torchrun_program_runs_unchanged(slurm: SlurmCluster, tmp_path: Path, model: Path) -> None:
    program = json.dumps(["python", str(ROOT / "tests/integration/jobs/plain_torchrun.py"), str(tmp_path / "ranks")])
    shape = ("layout.nodes=3", "layout.inference_nodes=1", "layout.gpus_per_node=2", "inference.replicas_per_node=1")
    job = submit(slurm, tmp_path, "cluster.wait=true", f"model.path={model}", f"trainer.command={program}", *shape)
    assert job.code == 0, job.output
    assert slurm.job_state(job.job_id) == "COMPLETED"
    assert release_seconds(slurm, job) < RELEASE_S
    slurm.wait_empty()
    ranks = json.loads((tmp_path / "ranks").read_text())
    assert [(r["RANK"], r["LOCAL_RANK"], r["GROUP_RANK"], r["host"]) for r in ranks] == [
        ("0", "0", "0", "rack0n01"),
        ("1", "1", "0", "rack0n01"),
        ("2", "0", "1", "rack0n02"),
        ("3", "1", "1", "rack0n02"),
    ]
    assert {(r["sum"], r["WORLD_SIZE"], r["LOCAL_WORLD_SIZE"]) for r in ranks} == {(6, "4", "2")}
    assert len({(r["MASTER_ADDR"], r["MASTER_PORT"]) for r in ranks}) == 1


def test_with_accounting_the_outcome_is_the_same(slurm_accounting: SlurmCluster, tmp_path: Path, model: Path) -> None:
    quick = ("cluster.wait=true", f"model.path={model}")
    job = submit(slurm_accounting, tmp_path, *quick, "trainer.command=[python,-c,pass]")
    assert job.code == 0, job.output
    failed = submit(slurm_accounting, tmp_path, *quick, "trainer.command=[python,-c,'raise SystemExit(9)']")
    assert failed.code == 5, failed.output
    slurm_accounting.wait_empty()
    deadline = time.monotonic() + 20
    wanted = {job.job_id: ("COMPLETED", "0:0"), failed.job_id: ("FAILED", "5:0")}
    while True:
        fields = ["sacct", "-X", "-n", "-P", "-o", "JobID,State,ExitCode", "-j", ",".join(wanted)]
        rows = [line.split("|") for line in slurm_accounting.run(fields).stdout.splitlines()]
        if {row[0]: (row[1], row[2]) for row in rows} == wanted:
            break
        assert time.monotonic() < deadline, rows
        time.sleep(0.5)


def test_without_waiting_it_returns_at_once_and_scancel_leaves_nothing(
    slurm: SlurmCluster, tmp_path: Path, model: Path
) -> None:
    job = submit(slurm, tmp_path, f"model.path={model}", SLEEPS)
    assert job.code == 0, job.output
    assert job.seconds < 15
    assert f"launcher cancel {job.run_dir}" in job.output
    assert f"launcher status {job.run_dir}" in job.output
    slurm.wait_job(job.job_id, ["RUNNING"])
    events = job.run_dir / "attempts/1/events.jsonl"
    deadline = time.monotonic() + 60
    while not events.exists() or '"name":"trainer-0000"' not in events.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    begin = time.monotonic()
    slurm.run(["scancel", job.job_id])
    slurm.wait_job(job.job_id, ["CANCELLED"])
    slurm.wait_empty()
    assert time.monotonic() - begin < 15
    assert job.event("cancelled")["message"] == "SIGTERM"
    assert job.event("finished")["outcome"] == "cancelled"


def test_scancel_is_told_to_who_follows_the_job(slurm: SlurmCluster, tmp_path: Path, model: Path) -> None:
    found: list[Submitted] = []

    def follow() -> None:
        found.append(submit(slurm, tmp_path, "cluster.wait=true", f"model.path={model}", SLEEPS))

    thread = threading.Thread(target=follow)
    thread.start()
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("runs/*/attempts/1/logs/trainer-0000.log")):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    (running,) = [job for job in slurm.jobs() if job.state == "RUNNING"]
    slurm.run(["scancel", running.job_id])
    thread.join(60)
    (job,) = found
    assert job.code == CANCELLED_CODE, job.output
    assert "Cancelled after " in job.output
    slurm.wait_empty()


def test_a_node_whose_agent_is_killed_fails_the_job_with_its_name(
    slurm: SlurmCluster, tmp_path: Path, model: Path
) -> None:
    # Otherwise the job is queued again, for nodes that live.
    job = submit(slurm, tmp_path, f"model.path={model}", SLEEPS, "cluster.requeue=false")
    log = job.run_dir / "attempts/1/logs/trainer-0000.log"
    deadline = time.monotonic() + 60
    while not log.exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    (agent,) = [p for p in slurm.node_processes("rack0n02") if "-m launcher.node " in p.command]
    begin = time.monotonic()
    os.kill(agent.pid, signal.SIGKILL)
    slurm.wait_job(job.job_id, ["FAILED"])
    slurm.wait_empty()
    assert time.monotonic() - begin < 15
    failure = job.event("failure")
    assert failure["message"] == "The agent on node 1 (rack0n02) ended with signal 9 (SIGKILL)."
    assert job.event("finished")["outcome"] == "failed"
