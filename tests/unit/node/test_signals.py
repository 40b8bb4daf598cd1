"""What a signal means, from what SLURM says at that moment (lines of SLURM 22.05, shortened)."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from launcher.common.run_dir import End, ends, record_begin, record_end
from launcher.control.model import StopReason
from launcher.node.signal_policy import decide, decide_local, end_of
from launcher.slurm.job_signals import SignalCause, read_node_removed, read_signal_cause

LINE = (
    "JobId=7 JobName=job.sh UserId=root(0) JobState={state} Reason={reason} Dependency=(null) Requeue=1"
    " Restarts={restarts} BatchFlag=1 ExitCode=0:15 TimeLimit=00:10:00 StartTime=2026-11-23T07:49:15 EndTime={end}"
    " Deadline=N/A PreemptEligibleTime=2026-11-23T07:49:15{preempt} SuspendTime=None Comment=a b=c"
)
NOW = 1_795_420_000.0
SIGNAL_S = 120


def line(*, state: str, reason: str = "None", restarts: int = 0, left_s: float = 3600, preempt: str = "None") -> str:
    end = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(NOW + left_s))
    return LINE.format(state=state, reason=reason, restarts=restarts, end=end, preempt=f" PreemptTime={preempt}")


def said(text: str, restarts: int = 0) -> SignalCause:
    return read_signal_cause(text, restarts, SIGNAL_S, NOW)


@pytest.mark.parametrize(
    ("name", "text", "restarts", "expected"),
    [
        # scancel
        ("SIGTERM", line(state="COMPLETING", left_s=0), 0, None),
        ("SIGTERM", line(state="COMPLETING", left_s=0, restarts=2), 2, None),
        # scancel --signal=TERM, or kill
        ("SIGTERM", line(state="RUNNING"), 0, None),
        # scontrol requeue, a node set down: SLURM has counted the next start already
        ("SIGTERM", line(state="COMPLETING", restarts=1), 0, StopReason.REQUEUE),
        ("SIGTERM", line(state="PENDING", restarts=3), 2, StopReason.REQUEUE),
        # a preemption without time of grace: SIGUSR2 comes along
        ("SIGUSR2", line(state="COMPLETING", restarts=1), 0, StopReason.PREEMPTION),
        # one with time of grace, of a job with and without a signal of its own
        ("SIGUSR2", line(state="RUNNING", left_s=18, preempt="2026"), 0, StopReason.PREEMPTION),
        ("SIGTERM", line(state="RUNNING", left_s=18, preempt="2026"), 0, StopReason.PREEMPTION),
        # the time limit: before it, up to a minute earlier than asked for, and at it
        ("SIGUSR2", line(state="RUNNING", left_s=SIGNAL_S), 0, StopReason.TIME_LIMIT),
        ("SIGUSR2", line(state="RUNNING", left_s=SIGNAL_S + 60), 0, StopReason.TIME_LIMIT),
        ("SIGTERM", line(state="COMPLETING", reason="TimeLimit", left_s=0), 0, StopReason.TIME_LIMIT),
        # scancel --signal=USR2
        ("SIGUSR2", line(state="RUNNING"), 0, StopReason.REQUEST),
        # SIGUSR2 and then scancel
        ("SIGUSR2", line(state="COMPLETING", left_s=0), 0, None),
    ],
)
def test_signals_on_slurm(name: str, text: str, restarts: int, expected: StopReason | None) -> None:
    assert decide(name, said(text, restarts)) == expected


def test_where_slurm_does_not_answer_the_checkpoint_matters_most() -> None:
    assert decide("SIGUSR2", None) == StopReason.REQUEST
    assert decide("SIGTERM", None) == StopReason.REQUEUE


def test_signals_outside_of_slurm() -> None:
    assert decide_local("SIGUSR2") == StopReason.REQUEST
    assert decide_local("SIGTERM") is None
    assert decide_local("SIGINT") is None


@pytest.mark.parametrize(
    ("reasons", "best"),
    [
        (["request", "preemption"], "preemption"),
        (["request", "requeue", "preemption"], "preemption"),
        (["preemption", "requeue", "request"], "preemption"),
        (["request", "time limit"], "time limit"),
        (["requeue", "time limit"], "time limit"),
        (["preemption", "time limit"], "preemption"),
        (["request", "request"], "request"),
    ],
)
def test_the_best_known_reason_counts_and_not_the_first(reasons: list[str], best: str) -> None:
    found: StopReason | None = None
    for reason in map(StopReason, reasons):
        if reason.replaces(found):
            found = reason
    assert found == best


@pytest.mark.parametrize(
    ("job_id", "is_requeued", "expected"),
    [
        # SLURM queued the job again, and killed the attempt before it knew why it was to stop.
        ("7", False, {"end": "preempted"}),
        # The attempt did so itself, as somebody had requested.
        ("7", True, {"end": "stopped", "is_requeued": True}),
        # A person resumed the run, as another job.
        ("8", False, {"end": "stopped"}),
    ],
)
def test_the_next_attempt_shows_why_the_one_before_was_stopped(
    tmp_path: Path, job_id: str, is_requeued: bool, expected: dict[str, object]
) -> None:
    for number in (1, 2):
        (tmp_path / "attempts" / str(number)).mkdir(parents=True)
    record_begin(tmp_path, 1, "7")
    record_end(tmp_path, 1, End.STOPPED, is_requeued=is_requeued)
    record_begin(tmp_path, 2, job_id)
    assert json.loads((tmp_path / "attempts" / "1" / "end.json").read_text()) == expected
    counted = End.PREEMPTED if expected["end"] == "preempted" else End.STOPPED
    assert ends(tmp_path, 2, "7") == {counted: 1}


def test_no_end_is_no_time_limit() -> None:
    text = line(state="RUNNING").replace(" EndTime=", " EndTime=Unknown Was=")
    assert said(text) == SignalCause()


def test_what_an_attempt_counts_as() -> None:
    assert {reason: end_of(reason) for reason in StopReason} == {
        StopReason.TIME_LIMIT: End.TIMED_OUT,
        StopReason.PREEMPTION: End.PREEMPTED,
        StopReason.REQUEUE: End.PREEMPTED,
        StopReason.REQUEST: End.STOPPED,
    }


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("JobId=7 JobState=RUNNING Restarts=0 NodeList=gpu-[01-04] BatchHost=gpu-01", False),
        ("JobId=7 JobState=RUNNING Restarts=0 NodeList=gpu-[02-04] BatchHost=gpu-01", True),
        # Queued again already: it is another attempt's job now.
        ("JobId=7 JobState=RUNNING Restarts=1 NodeList=gpu-[02-04] BatchHost=gpu-02", None),
        ("JobId=7 JobState=PENDING Restarts=0 NodeList=(null)", None),
    ],
)
def test_a_node_that_slurm_took_out_of_the_job(line: str, expected: bool | None) -> None:
    assert read_node_removed(line, "gpu-01", restarts=0) is expected
