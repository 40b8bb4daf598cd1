"""What a signal means, from what SLURM says at that moment (lines of SLURM 22.05, shortened)."""

from __future__ import annotations

import time

import pytest

from launcher.common.attempts import End
from launcher.node.signal_policy import Reason, decide
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
        ("SIGTERM", line(state="COMPLETING", restarts=1), 0, Reason.REQUEUE),
        ("SIGTERM", line(state="PENDING", restarts=3), 2, Reason.REQUEUE),
        # a preemption without time of grace: SIGUSR2 comes along
        ("SIGUSR2", line(state="COMPLETING", restarts=1), 0, Reason.PREEMPTION),
        # one with time of grace, of a job with and without a signal of its own
        ("SIGUSR2", line(state="RUNNING", left_s=18, preempt="2026"), 0, Reason.PREEMPTION),
        ("SIGTERM", line(state="RUNNING", left_s=18, preempt="2026"), 0, Reason.PREEMPTION),
        # the time limit: before it, up to a minute earlier than asked for, and at it
        ("SIGUSR2", line(state="RUNNING", left_s=SIGNAL_S), 0, Reason.TIME_LIMIT),
        ("SIGUSR2", line(state="RUNNING", left_s=SIGNAL_S + 60), 0, Reason.TIME_LIMIT),
        ("SIGTERM", line(state="COMPLETING", reason="TimeLimit", left_s=0), 0, Reason.TIME_LIMIT),
        # scancel --signal=USR2
        ("SIGUSR2", line(state="RUNNING"), 0, Reason.REQUEST),
        # SIGUSR2 and then scancel
        ("SIGUSR2", line(state="COMPLETING", left_s=0), 0, None),
    ],
)
def test_signals_on_slurm(name: str, text: str, restarts: int, expected: Reason | None) -> None:
    assert decide(name, lambda: said(text, restarts)) == expected


def test_where_slurm_does_not_answer_the_checkpoint_matters_most() -> None:
    assert decide("SIGUSR2", lambda: None) == Reason.REQUEST
    assert decide("SIGTERM", lambda: None) == Reason.REQUEUE


def test_signals_outside_of_slurm() -> None:
    assert decide("SIGUSR2", None) == Reason.REQUEST
    assert decide("SIGTERM", None) is None
    assert decide("SIGINT", None) is None


def test_no_end_is_no_time_limit() -> None:
    text = line(state="RUNNING").replace(" EndTime=", " EndTime=Unknown Was=")
    assert said(text) == SignalCause()


def test_what_an_attempt_counts_as() -> None:
    assert {reason: reason.end for reason in Reason} == {
        Reason.TIME_LIMIT: End.TIMED_OUT,
        Reason.PREEMPTION: End.PREEMPTED,
        Reason.REQUEUE: End.PREEMPTED,
        Reason.REQUEST: End.STOPPED,
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
