"""The cause among many failures: order of time, clocks that are off, words that blame others, and words of SLURM."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from launcher.cli import main
from launcher.config import Config, LayoutConfig
from launcher.events.failure_kinds import FailureKind as Kind
from launcher.events.failure_kinds import Retry
from launcher.layout import layout_to_json, plan
from launcher.observe.root_cause.diagnosis import RunDiagnosis, diagnose, find_root_cause
from launcher.observe.root_cause.evidence import FailureCandidate
from launcher.observe.root_cause.render import render
from launcher.slurm.states import JobState
from tests.unit.event_fields import check_fields


def suspect(
    who: str, time: float, kind: Kind = Kind.USER_CODE, *, symptom: bool = False, error: float = 0.1
) -> FailureCandidate:
    return FailureCandidate(who=who, kind=kind, is_symptom=symptom, line="x", time=time, error_s=error)


def cause(*suspects: FailureCandidate) -> str:
    found = find_root_cause(suspects)
    assert found is not None
    assert len(found.victims) == len(suspects) - 1
    return found.cause.who


def test_the_earliest_is_the_cause() -> None:
    assert cause(suspect("b", 2.0), suspect("a", 1.0), suspect("c", 3.0)) == "a"


def test_who_blames_a_peer_is_a_victim_even_if_it_was_first_to_say_so() -> None:
    killed = suspect("rank 1", 5.0, Kind.KILLED)
    reset = suspect("rank 0", 4.0, Kind.CONNECTION, symptom=True)
    assert cause(reset, killed) == "rank 1"


def test_of_victims_only_the_first_is_the_best_there_is() -> None:
    waits = [suspect(f"rank {n}", 10.0 + n, Kind.NCCL_TIMEOUT, symptom=True) for n in range(3)]
    assert cause(*waits) == "rank 0"


def test_times_that_cannot_be_told_apart_are_ordered_by_what_they_explain() -> None:
    plain, memory = suspect("a", 1.0), suspect("b", 1.3, Kind.GPU_MEMORY, error=0.3)
    assert cause(plain, memory) == "b"
    assert cause(plain, suspect("b", 1.5, Kind.GPU_MEMORY, error=0.3)) == "a"


def test_nothing_failed() -> None:
    assert find_root_cause([]) is None


class Recorded:
    """A run directory that is written event by event."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.time = 1000.0
        (path / "attempts/1/logs").mkdir(parents=True)
        (path / "config.yaml").write_text("")
        shape = LayoutConfig(nodes=3, inference_nodes=1, gpus_per_node=1, device="cpu")
        layout = plan(Config(layout=shape), ["gpu-0", "gpu-1", "gpu-2"])
        (path / "layout.json").write_text(layout_to_json(layout))

    def event(self, event: str, *, attempt: int = 1, after: float = 1.0, **fields: Any) -> None:
        check_fields(event, fields)
        self.time += after
        folder = self.path / "attempts" / str(attempt)
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "events.jsonl").open("a") as file:
            file.write(json.dumps({"time": self.time, "event": event, **fields}) + "\n")

    def failure(self, rank: int, message: str, *, tail: tuple[str, ...] = (), **fields: Any) -> None:
        self.event(
            "failure",
            message=f"trainer {rank} on node {rank} (gpu-{rank}) ended with {message}",
            process=f"trainer-000{rank}",
            role="trainer",
            rank=rank,
            node_rank=rank,
            hostname=f"gpu-{rank}",
            tail=list(tail),
            **fields,
        )

    def log(self, name: str, text: str) -> Path:
        path = self.path / "attempts/1/logs" / f"{name}.log"
        path.write_text(text)
        return path

    def diagnose(self, slurm: str | None = None) -> RunDiagnosis:
        return diagnose(self.path, lambda _: None if slurm is None else JobState(name=slurm))


@pytest.fixture
def run(tmp_path: Path) -> Recorded:
    return Recorded(tmp_path)


RESET = ("Traceback (most recent call last):", "RuntimeError: Connection reset by peer")


def only(diagnosis: RunDiagnosis) -> FailureCandidate:
    assert diagnosis.last is not None
    assert diagnosis.last.cause is not None, diagnosis
    return diagnosis.last.cause


def test_a_killed_rank_is_the_cause_and_its_peers_are_victims(run: Recorded) -> None:
    run.event("attempt", attempt=1)
    run.failure(0, "exit code 1", tail=RESET, exit_code=1)
    run.failure(1, "signal 9 (SIGKILL)", exit_code=-9, after=0.2)
    run.event("finished", outcome="failed")
    diagnosis = run.diagnose()
    found = only(diagnosis)
    assert (found.who, found.kind, found.where) == ("trainer-0001", Kind.KILLED, "trainer 1 on node 1 (gpu-1)")
    assert diagnosis.last is not None
    assert [victim.who for victim in diagnosis.last.victims] == ["trainer-0000"]
    text = render(diagnosis)
    assert "Cause: trainer 1 on node 1 (gpu-1) ended with signal 9 (SIGKILL)" in text
    assert "kind        killed at " in text
    assert "Failed because of it: trainer 0 on node 0 (gpu-0) (connection lost at " in text
    assert "retry       yes. HINT: " in text


def test_the_nodes_own_clock_counts_corrected_by_what_the_preflight_measured(run: Recorded) -> None:
    run.event("preflight", node_rank=0, clock_s=0.0, clock_error_s=0.001)
    run.event("preflight", node_rank=1, clock_s=50.0, clock_error_s=0.001)
    boom = ("ValueError: boom",)
    # Node 1's report came later, but what it reports was earlier; its clock is 50 s ahead.
    run.failure(0, "exit code 1", tail=boom, exit_code=1, at=2000.0)
    run.failure(1, "exit code 1", tail=boom, exit_code=1, at=2048.0)
    run.event("finished", outcome="failed")
    assert only(run.diagnose()).who == "trainer-0001"
    assert only(run.diagnose()).time == 1998.0


def test_a_rank_that_nobody_reported_is_found_in_its_log(run: Recorded) -> None:
    run.failure(0, "exit code 1", tail=RESET, exit_code=1)
    run.event("finished", outcome="failed")
    path = run.log(
        "trainer-0001", "step 3\nTraceback (most recent call last):\n  x\ntorch.OutOfMemoryError: CUDA out of memory.\n"
    )
    os.utime(path, (1000.5, 1000.5))
    found = only(run.diagnose())
    assert (found.who, found.kind, found.rank, found.hostname) == ("trainer-0001", Kind.GPU_MEMORY, 1, "gpu-1")


def test_a_traceback_that_a_process_got_over_is_no_failure(run: Recorded) -> None:
    run.failure(0, "signal 9 (SIGKILL)", exit_code=-9)
    run.event("finished", outcome="failed")
    text = "Traceback (most recent call last):\n  x\nModuleNotFoundError: No module named 'plugin'\n"
    path = run.log("inference-0", text + "".join(f"INFO request {n}\n" for n in range(20)))
    os.utime(path, (run.time, run.time))
    diagnosis = run.diagnose()
    assert only(diagnosis).kind is Kind.KILLED
    assert diagnosis.last is not None
    assert diagnosis.last.victims == ()


def test_what_an_agent_saw_comes_before_what_only_a_log_tells(run: Recorded) -> None:
    run.failure(0, "signal 9 (SIGKILL)", exit_code=-9)
    run.event("finished", outcome="failed")
    path = run.log("inference-0", "Traceback (most recent call last):\n  x\nModuleNotFoundError: No module named 'x'\n")
    os.utime(path, (run.time + 1, run.time + 1))
    assert only(run.diagnose()).kind is Kind.KILLED


def test_a_process_that_the_launcher_stopped_is_no_suspect(run: Recorded) -> None:
    run.event("process", name="trainer-0001", state="ended", exit_code=-15)
    run.failure(0, "exit code 1", tail=("ValueError: boom",), exit_code=1)
    run.event("finished", outcome="failed")
    run.log("trainer-0001", "Traceback (most recent call last):\nRuntimeError: out\nMemoryError\n")
    diagnosis = run.diagnose()
    assert only(diagnosis).who == "trainer-0000"
    assert diagnosis.last is not None
    assert diagnosis.last.victims == ()


def test_the_cause_far_up_in_an_engines_log_is_found(run: Recorded) -> None:
    log = (Path(__file__).parents[1] / "triage_logs" / "vllm-kv.txt").read_text()
    path = run.log("inference-0", log)
    run.event(
        "failure", message="inference 0 on node 1 (gpu-1) ended with exit code 1", process="inference-0",
        role="inference", rank=0, node_rank=1, hostname="gpu-1", exit_code=1, log=str(path),
        tail=log.splitlines()[-5:],
    )  # fmt: skip
    run.event("finished", outcome="failed")
    found = only(run.diagnose())
    assert found.kind is Kind.HOST_MEMORY
    assert "Available memory on node 0" in found.line


def test_without_a_last_word_node_0_is_the_suspect_and_slurm_says_the_rest(run: Recorded) -> None:
    run.event("node_up", node_rank=0, hostname="gpu-0", role="trainer")
    with (run.path / "attempts/1/events.jsonl").open("a") as file:
        file.write('{"time": 1005.0, "event": "st')
    run.log("trainer-0001", "launcher: The control service at 10.0.0.1:1 is gone: connection closed\n")
    found = only(run.diagnose())
    assert (found.where, found.kind) == ("trainer on node 0 (gpu-0)", Kind.NODE_LOST)
    assert "node 0 wrote no final event" in found.line
    assert only(run.diagnose("NODE_FAIL")).kind is Kind.NODE_LOST
    assert only(run.diagnose("OUT_OF_MEMORY")).kind is Kind.HOST_MEMORY
    assert only(run.diagnose("TIMEOUT")).kind is Kind.TIMED_OUT


def test_what_the_run_got_over_is_not_the_cause(run: Recorded) -> None:
    run.event("node_lost", node_rank=1, hostname="gpu-1", role="trainer", reason="silent for 11 s")
    run.event("spare", node_rank=2, hostname="gpu-2", slot=1, role="trainer", after=0.1)
    run.event("step", step=7, after=30.0)
    run.failure(0, "exit code 1", tail=("ValueError: boom",), exit_code=1, first=True)
    run.event("finished", outcome="failed")
    diagnosis = run.diagnose()
    assert only(diagnosis).kind is Kind.USER_CODE
    assert diagnosis.last is not None
    assert diagnosis.last.recovered == ("spare gpu-2 takes the place of node 1",)


def test_a_lost_node_that_ends_the_run_is_the_cause(run: Recorded) -> None:
    text = "trainer on node 1 (gpu-1): its agent has been silent for 11 s, longer than `lease_timeout_s` (10)."
    run.event("step", step=7)
    run.event("node_lost", node_rank=1, hostname="gpu-1", role="trainer", reason=text, after=11.0)
    run.event("failure", message=text, first=True, role="trainer", node_rank=1, hostname="gpu-1", after=0.0)
    run.event("finished", outcome="failed")
    assert only(run.diagnose()).kind is Kind.NODE_LOST
    assert only(run.diagnose()).hostname == "gpu-1"


@pytest.mark.parametrize(
    "message",
    [
        "inference 0 on node 1 (gpu-1) did not answer `/health` for 20 s (`restart.engine_health_timeout_s`).",
        "No step was finished within `restart.step_timeout_s` (600 s).",
        "trainer 0 on node 0 (gpu-0) has had a stopped process (SIGSTOP) for 10 s"
        " (`restart.stopped_process_timeout_s`).",
    ],
)
def test_what_hangs_is_called_so(run: Recorded, message: str) -> None:
    run.event("failure", message=message, kind="hung", first=True)
    run.event("finished", outcome="failed")
    assert only(run.diagnose()).kind is Kind.HUNG


def test_what_runs_or_completed_needs_no_explanation(run: Recorded) -> None:
    run.event("node_up", node_rank=0, hostname="gpu-0", role="trainer")
    diagnosis = run.diagnose("RUNNING")
    assert diagnosis.last is not None
    assert diagnosis.last.cause is None
    run.event("finished", outcome="completed")
    last = run.diagnose("COMPLETED").last
    assert last is not None
    assert (last.outcome, last.cause) == ("completed", None)


@pytest.mark.parametrize(
    ("reason", "slurm", "kind"),
    [
        ("SIGTERM", "CANCELLED", Kind.CANCELLED),
        ("preemption", None, Kind.PREEMPTED),
        ("time limit", None, Kind.TIMED_OUT),
        ("SIGTERM", "PREEMPTED", Kind.PREEMPTED),
    ],
)
def test_the_order_to_end_comes_before_what_fails_by_it(
    run: Recorded, reason: str, slurm: str | None, kind: Kind
) -> None:
    run.event("stopping", reason=reason)
    run.failure(0, "exit code 1", tail=("ValueError: boom",), exit_code=1)
    run.event("finished", outcome="cancelled")
    diagnosis = run.diagnose(slurm)
    assert only(diagnosis).kind is kind
    assert diagnosis.last is not None
    assert len(diagnosis.last.victims) == 1


def test_what_failed_before_somebody_gave_up_is_the_cause(run: Recorded) -> None:
    run.failure(0, "exit code 1", tail=("ValueError: boom",), exit_code=1)
    run.event("cancelled", message="SIGINT", after=20.0)
    run.event("finished", outcome="cancelled")
    assert only(run.diagnose("CANCELLED")).kind is Kind.USER_CODE


def test_earlier_attempts_have_a_line_each(run: Recorded) -> None:
    run.event("stopping", reason="preemption")
    run.event("finished", outcome="cancelled")
    run.event("attempt", attempt=2)
    run.event("restart", attempt=2, what="engine", replica=1, counted_restarts=1, max_restarts=3, reason="signal 9")
    run.event("failure", attempt=2, message="Preflight failed on node 1 (gpu-1) of 2; no worker was started.",
              tail=["node  hostname  what is wrong", "1     gpu-1     shm: full"], launcher_exit_code=7)  # fmt: skip
    run.event("finished", attempt=2, outcome="failed")
    diagnosis = run.diagnose()
    assert [attempt.cause.kind for attempt in diagnosis.attempts if attempt.cause] == [
        Kind.PREEMPTED,
        Kind.PREFLIGHT,
    ]
    text = render(diagnosis)
    assert text.startswith("attempt 1: cancelled: preempted, job: preemption\n")
    assert "recovered: restarting inference-1 (restart 1 of 3): signal 9" in text
    assert "    | 1     gpu-1     shm: full" in text


def test_the_command_prints_it_and_json(run: Recorded, capsys: pytest.CaptureFixture[str]) -> None:
    run.failure(0, "exit code 1", tail=("ModuleNotFoundError: No module named 'x'",), exit_code=1)
    run.event("finished", outcome="failed")
    assert main(["why", str(run.path), "--offline"]) == 0
    assert "kind        import error" in capsys.readouterr().out
    assert main(["why", str(run.path), "--offline", "--json"]) == 0
    (attempt,) = json.loads(capsys.readouterr().out)["attempts"]
    assert (attempt["cause"]["kind"], attempt["retry"]) == ("import_error", Retry.NO)


@pytest.mark.parametrize(
    ("exit_code", "log", "kind", "words"),
    [
        (127, "slurm_script: line 17: module: command not found\n", Kind.CONFIGURATION, "exit code 127 before any"),
        (1, "mkdir: cannot create directory 'x': No space left on device\n", Kind.DISK, "No space left on device"),
        (7, None, Kind.UNKNOWN, "it wrote nothing"),
        # 0:53, as SLURM shows it: it could not open the log.
        (128 + 53, None, Kind.DISK, "can write no output below"),
    ],
)
def test_a_job_script_that_ended_before_any_node_started_is_explained_by_its_log(
    tmp_path: Path, exit_code: int, log: str | None, kind: Kind, words: str
) -> None:
    (tmp_path / "submitit").mkdir()
    if log is not None:
        (tmp_path / "submitit" / "12_0_log.out").write_text(log)
    diagnosis = diagnose(tmp_path, lambda _: JobState(name="FAILED", exit_code=exit_code))
    assert only(diagnosis).kind is kind
    text = render(diagnosis)
    assert text.startswith("attempt 1: failed (SLURM: FAILED)")
    assert words in text
    assert log is None or f"    | {log.rstrip()}" in text


def test_a_directory_without_attempts_has_nothing_to_explain(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text("")
    (tmp_path / "layout.json").write_text("{}")
    assert main(["why", str(tmp_path), "--offline"]) == 1
    assert "no node of the run ever started" in capsys.readouterr().out
