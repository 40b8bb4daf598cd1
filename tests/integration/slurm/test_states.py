"""States of real jobs: arrays, heterogeneous and held ones; accounting on, off, away; no controller."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.slurm.client import ControllerAway
from launcher.slurm.query import accounted_states, job_state, job_states
from tests.slurm_cluster.cluster import SlurmCluster

pytestmark = pytest.mark.slurm
DEADLINE_S = 60


def wait(predicate: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not predicate():
        assert time.monotonic() < deadline, f"not within {DEADLINE_S} s: {what}"
        time.sleep(0.2)


@pytest.fixture
def cluster(slurm_accounting: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> SlurmCluster:
    for name, value in slurm_accounting.variables.items():
        monkeypatch.setenv(name, value)
    return slurm_accounting


def submit(cluster: SlurmCluster, *options: str) -> str:
    return cluster.run(["sbatch", "--parsable", "--mem=100M", "--output=/dev/null", *options]).stdout.strip()


def changed(conf: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str, after: str) -> None:
    """Asks from now on with a configuration in which one setting is another one."""
    lines = [after if line.startswith(before) else line for line in Path(conf).read_text().splitlines()]
    assert after in lines
    path = tmp_path / "slurm.conf"
    path.write_text("\n".join(lines) + "\n")
    monkeypatch.setenv("SLURM_CONF", str(path))


def test_states_of_real_jobs(cluster: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array = submit(cluster, "--array=0-2%2", "--wrap", "sleep $((SLURM_ARRAY_TASK_ID * 600)); exit 5")
    het = submit(cluster, "-N1", "--mem=100M", ":", "-N1", "--mem=100M", "--wrap", "sleep 600")
    held = submit(cluster, "--hold", "--wrap", "true")
    later = submit(cluster, "--begin=now+1hour", "--wrap", "true")
    ids = [f"{array}_0", f"{array}_1", f"{array}_2", array, het, f"{het}+1", held, later, "99999999"]

    def names() -> dict[str, str]:
        return {job_id: state.name for job_id, state in job_states(ids).items()}

    wait(lambda: names().get(f"{array}_2") == names().get(het) == "RUNNING", "the array and the het job to run")
    found = job_states(ids)
    assert (found[f"{array}_0"].name, found[f"{array}_0"].exit_code) == ("FAILED", 5)
    assert found[array].name == found[f"{array}_1"].name == found[f"{het}+1"].name == "RUNNING"
    assert found[held].is_held and found[later].is_waiting and not found[later].is_held
    assert abs((found[later].start or 0) - time.time() - 3600) < 120
    assert "99999999" not in found

    cluster.run(["scontrol", "suspend", f"{array}_1"])
    assert job_states(ids)[f"{array}_1"].name == "SUSPENDED"
    cluster.run(["scontrol", "resume", f"{array}_1"])
    cluster.run(["scontrol", "requeuehold", f"{array}_2"])
    wait(lambda: job_states(ids)[f"{array}_2"].is_held, "the element to be requeued and held")

    conf = cluster.variables["SLURM_CONF"]
    cluster.run(["scancel", array, het, held, later])
    wait(lambda: set(names().values()) <= {"CANCELLED", "FAILED"}, "all to be cancelled")
    cluster.cancel_all()
    # The same from accounting, a little later.
    wanted = {f"{array}_0": "FAILED", f"{array}_1": "CANCELLED", het: "CANCELLED", held: "CANCELLED"}
    wait(
        lambda: {job_id: state.name for job_id, state in accounted_states([*wanted]).items()} == wanted,
        "accounting to know",
    )
    assert accounted_states([f"{array}_0"])[f"{array}_0"].exit_code == 5

    changed(conf, tmp_path, monkeypatch, "AccountingStorageType=", "AccountingStorageType=accounting_storage/none")
    assert accounted_states([*wanted]) == {}
    assert job_state("99999999") is None
    assert job_state(held) is not None
    changed(conf, tmp_path, monkeypatch, "SlurmctldPort=", "SlurmctldPort=9")
    with pytest.raises(ControllerAway, match=r"Unable to contact slurm controller|did not answer"):
        job_states([held], timeout_s=5)
