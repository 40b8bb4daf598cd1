"""Sweeps without any run: which combinations there are, which are the same, and what a ledger remembers."""

from __future__ import annotations

import copy
import errno
import fcntl
import json
import math
import multiprocessing
import os
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from launcher.common.errors import ConfigError, LauncherError
from launcher.config import compose
from launcher.config.metric import Metric
from launcher.config.schema import Config, SlurmClusterConfig
from launcher.submit.job_array import with_dependency
from launcher.sweep.candidates import KEPT, NOT_IN_IDENTITY, combinations, identity, sweep_name
from launcher.sweep.launch import resources
from launcher.sweep.ledger import Ledger, SweepBusy
from launcher.sweep.start import concurrency_after
from launcher.sweep.status import Status, read_progress, run_statuses


def combined(*words: str, zipped: tuple[str, ...] = ()) -> list[str]:
    return [" ".join(run) for run in combinations(OverridesParser.create().parse_overrides(list(words)), zipped)]


def test_the_product_of_all_values_in_the_order_of_the_command() -> None:
    assert combined("+cluster=slurm", "a=1,2", "b=range(3)") == [
        f"+cluster=slurm a={a} b={b}" for a in (1, 2) for b in (0, 1, 2)
    ]
    assert combined("~x", "a=[1,2]", "b='1,2'") == ["~x a=[1,2] b='1,2'"]


def test_paired_settings_change_together() -> None:
    assert combined("a=1,2,3", "b=x,y", "+c=7,8,9", zipped=("a", "c")) == [
        f"a={a} +c={c} b={b}" for a, c in ((1, 7), (2, 8), (3, 9)) for b in "xy"
    ]


@pytest.mark.parametrize(
    ("words", "zipped", "says"),
    [
        (["a=1,2", "b=1,2,3"], ("a", "b"), "`a` has 2 values, `b` has 3 values. HINT: give each as many values."),
        (["a=1,2", "b=1"], ("a", "b"), "`sweep.zip` names `b`, which has no list of values. HINT: write `b=a,b`"),
        (["a=1,2"], ("a", "c"), "names `c`, which has no list"),
        (["a=1,2"], ("a",), "pairs one setting with nothing"),
        (["a=interval(0,1)"], (), "only an optimising sweeper can choose. HINT: add `hydra/sweeper=optuna`"),
    ],
)
def test_what_cannot_be_combined(words: list[str], zipped: tuple[str, ...], says: str) -> None:
    with pytest.raises(ConfigError) as raised:
        combined(*words, zipped=zipped)
    assert says in str(raised.value)


def changed(base: Config, path: str) -> Config:
    config = copy.deepcopy(base)
    *groups, name = path.split(".")
    owner: Any = config
    for group in groups:
        owner = getattr(owner, group)
    value = getattr(owner, name)
    new = {"changed": "x"} if isinstance(value, dict) else ["changed"] if isinstance(value, list) else "changed"
    setattr(owner, name, new)
    return config


def leaves(owner: Any, prefix: str = "") -> list[str]:
    found: list[str] = []
    for field in fields(owner):
        value = getattr(owner, field.name)
        found += leaves(value, f"{prefix}{field.name}.") if is_dataclass(value) else [prefix + field.name]
    return found


def test_every_setting_counts_or_does_not_count_on_purpose() -> None:
    base = compose(["+cluster=slurm"])
    known = set(NOT_IN_IDENTITY) - {"cluster"}
    for path in leaves(base):
        is_kept = path in KEPT
        is_left_out = path.startswith("cluster.") or path in known or path.partition(".")[0] in known
        assert (identity(changed(base, path)) == identity(base)) == (is_left_out and not is_kept), path
        assert identity(changed(base, path), [path]) != identity(base, [path]), path


def test_the_same_command_has_the_same_sweep() -> None:
    words = ["trainer.lr=1,2", "layout.nodes=3"]
    name = sweep_name("rl", words)
    assert name == sweep_name("rl", [*reversed(words), "sweep.parallel=4", "+cluster=slurm", "output_dir=x"])
    assert name != sweep_name("rl", ["trainer.lr=1,3", "layout.nodes=3"])
    assert name != sweep_name("rl", [*words, "cluster.time=1,2"])


def write_events(run_dir: Path, *events: dict[str, Any], attempt: int = 1) -> None:
    path = run_dir / "attempts" / str(attempt) / "events.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"time": 1.0, **event}) + "\n" for event in events))


def test_a_metric_is_a_mean_over_steps() -> None:
    curve = [(step, float(step)) for step in range(1, 21)]
    assert Metric.parse("reward") == Metric(name="reward", reduction="max")
    assert [Metric.parse(f"loss.{word}").value(curve) for word in ("max", "min", "last", "mean")] == [18, 3, 18, 10.5]
    assert Metric.parse("reward").value([(1, 4.0)]) == 4.0
    assert Metric.parse("reward").value([]) is None


def test_progress_counts_a_step_that_is_done_again_once(tmp_path: Path) -> None:
    steps = [{"event": "step", "step": n, "steps": 4, "mine": n} for n in (1, 2, 3)]
    write_events(tmp_path, {"event": "submitted", "job_id": "7"}, *steps, {"event": "finished", "outcome": "requeued"})
    again = [{"event": "step", "step": 3, "mine": 30}, {"event": "step", "step": 4, "mine": math.nan}]
    write_events(tmp_path, *again, attempt=2)
    found = read_progress(tmp_path, Metric.parse("mine"))
    assert found.curve == ((1, 1.0), (2, 2.0), (3, 30.0))
    assert (found.steps, found.planned, found.job_id, found.outcome) == (4, 4, "7", None)


def intent(identity: str, run_dir: Path, cluster: str = "local") -> dict[str, Any]:
    return {"record": "intent", "run": identity, "run_dir": str(run_dir), "cluster": cluster}


def test_a_ledger_survives_a_writer_that_was_killed(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.append({"record": "run", "run": "a", "overrides": ["x=1"]}, {"record": "run", "run": "b", "overrides": []})
    with (tmp_path / "ledger.jsonl").open("a") as file:
        file.write('{"time":1,"record":"intent","run":"a","run_d')
    ledger.append(intent("b", tmp_path / "one", "slurm"))
    entries = ledger.entries()
    assert list(entries) == ["a", "b"]
    assert (entries["a"].overrides, entries["a"].run_dir) == (("x=1",), None)
    assert entries["b"].is_open
    ledger.append({"record": "job", "run": "b", "job_id": "12"}, intent("b", tmp_path / "two", "slurm"))
    entry = ledger.entries()["b"]
    assert (entry.job_id, entry.run_dir, entry.earlier) == (None, tmp_path / "two", [tmp_path / "one"])


def test_states_come_from_the_run_directories(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.append(*({"record": "run", "run": name, "overrides": [name]} for name in "abcde"))
    ledger.append(*(intent(name, tmp_path / name) for name in "abcd"))
    write_events(tmp_path / "a", {"event": "step", "step": 1, "reward": 2}, {"event": "finished"})
    write_events(tmp_path / "b", {"event": "finished", "outcome": "failed"})
    write_events(tmp_path / "c", {"event": "step", "step": 1})
    ledger.append({"record": "cancelled", "run": "d"})
    alone = run_statuses(ledger, Metric.parse("reward"))
    assert [run.status for run in alone] == [
        Status.DONE,
        Status.FAILED,
        Status.FAILED,
        Status.CANCELLED,
        Status.MISSING,
    ]
    assert alone[0].value == 2.0
    with ledger.lock(1):
        assert run_statuses(ledger, Metric.parse("reward"))[2].status is Status.RUNNING


def hold(directory: Path, is_held: Any, release: Any) -> None:
    with Ledger(directory).lock(10):
        is_held.set()
        release.wait(60)


def test_two_commands_do_not_work_on_one_sweep(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    is_held, release = context.Event(), context.Event()
    other = context.Process(target=hold, args=(tmp_path, is_held, release))
    other.start()
    assert is_held.wait(60)
    ledger = Ledger(tmp_path)
    assert str(ledger.lock_owner()).startswith(f"process {other.pid} on ")
    with pytest.raises(SweepBusy, match=f"process {other.pid} on "), ledger.lock(0.1):
        pass
    other.kill()
    other.join(60)
    with ledger.lock(10):
        pass
    assert ledger.lock_owner() is None


def test_a_filesystem_without_file_locks_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """tox-dev/filelock#67: on Lustre without locks a program waited for ever."""

    def flock(file: Any, operation: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", flock)
    words = r"has no file locks \(Function not implemented\). HINT: set `output_dir`"
    with pytest.raises(LauncherError, match=words), Ledger(tmp_path).lock(10):
        pass


def test_a_throttled_job_waits_for_the_one_so_many_before_it() -> None:
    throttle = concurrency_after(["1"], 2)
    chosen = []
    for job in ("2", "3", "4"):
        chosen.append(throttle.dependency())
        throttle.add(job)
    assert chosen == [None, "afterany:1", "afterany:2"]
    assert throttle.dependency_of_all() == "afterany:1:2:3:4"
    assert concurrency_after(["1"], None).dependency() is None
    assert concurrency_after(["1"], None).dependency_of_all() is None
    assert concurrency_after([], 2).dependency_of_all() is None


def test_a_dependency_is_added_to_the_users_own() -> None:
    config = with_dependency(compose(["+cluster=slurm", "+cluster.sbatch.dependency=singleton"]), "afterany:7")
    assert isinstance(config.cluster, SlurmClusterConfig)
    assert config.cluster.sbatch["dependency"] == "singleton,afterany:7"


@pytest.mark.slow
def test_runs_that_want_the_same_of_slurm() -> None:
    base = ["+cluster=slurm", "layout.nodes=3"]
    assert resources(compose(base)) == resources(compose([*base, "trainer.lr=7"]))
    for other in ("layout.inference_nodes=2", "cluster.time=01:00:00"):
        assert resources(compose(base)) != resources(compose([*base, other]))
