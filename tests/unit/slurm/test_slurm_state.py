"""What SLURM's answers mean, and how it is asked; the tools' output here is what real ones print."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from launcher.slurm.client import ControllerAway
from launcher.slurm.query import LONGEST_INTERVAL_S, LONGEST_SILENCE_S, StateWatch, job_state, job_states
from launcher.slurm.states import FINAL, JobState, combine, is_part_of
from tests.unit.slurm_tools import AWAY, NO_SUCH, OFF, calls, row, tool, tools

__all__ = ["tools"]


@pytest.mark.parametrize(
    ("squeue", "sacct", "state"),
    [
        (row("7", "RUNNING"), "exit 1", JobState(name="RUNNING")),
        (row("7", "FAILED", 1280), "exit 1", JobState(name="FAILED", exit_code=5)),
        (row("7", "CANCELLED", 15), "exit 1", JobState(name="CANCELLED", exit_code=143)),
        (row("7", "PENDING", reason="Nodes required for job are DOWN, DRAINED"), "exit 1", None),
        ("exit 0", "echo '7|CANCELLED by 1000|0:15|Unknown'", JobState(name="CANCELLED", exit_code=143)),
        (NO_SUCH, "echo '7|FAILED|5:0|None'", JobState(name="FAILED", exit_code=5)),
        ("exit 0", "echo '7|RUNNING|0:0|Unknown'", None),
        ("exit 0", OFF, None),
        ("exit 0", "exit 0", None),
    ],
)
def test_one_job(tools: Path, squeue: str, sacct: str, state: JobState | None) -> None:
    tool(tools, "squeue", squeue)
    tool(tools, "sacct", sacct)
    if "DOWN" in squeue:
        state = JobState(name="PENDING", reason="Nodes required for job are DOWN, DRAINED")
    assert job_state("7") == state


def test_many_jobs_cost_one_question_each(tools: Path) -> None:
    ids = [str(n) for n in range(1000, 2000)]
    tool(tools, "squeue", "\n".join(row(n, "RUNNING") for n in ids[:600]))
    tool(tools, "sacct", "\n".join(f"echo '{n}|COMPLETED|0:0|None'" for n in ids[600:]))
    states = job_states(ids)
    assert len(states) == 1000
    assert {state.name for state in states.values()} == {"RUNNING", "COMPLETED"}
    assert [call.split()[0] for call in calls(tools)] == ["squeue", "sacct"]
    assert "1599" not in calls(tools)[1]


def test_nothing_is_asked_about_nothing(tools: Path) -> None:
    assert job_states([]) == {}
    assert calls(tools) == []


def test_elements_and_components(tools: Path) -> None:
    lines = [row("12_3", "RUNNING"), row("12_4", "PENDING", reason="JobArrayTaskLimit"), row("12_1", "FAILED", 256)]
    lines += [row("20+0", "COMPLETED"), row("20+1", "FAILED", 768), row("123", "COMPLETED")]
    tool(tools, "squeue", "\n".join(lines))
    tool(tools, "sacct", OFF)
    states = job_states(["12_3", "12_4", "12_1", "20", "20+0", "12", "1"])
    assert {job_id: state.name for job_id, state in states.items()} == {
        "12_3": "RUNNING",
        "12_4": "PENDING",
        "12_1": "FAILED",
        "20": "FAILED",
        "20+0": "COMPLETED",
        "12": "RUNNING",
    }


@pytest.mark.parametrize(
    ("job_id", "of", "is_part"),
    [("12", "12", True), ("12_3", "12", True), ("12+0", "12", True), ("123", "12", False), ("12", "12_3", False)],
)
def test_parts(job_id: str, of: str, is_part: bool) -> None:
    assert is_part_of(job_id, of) is is_part


@pytest.mark.parametrize(
    ("names", "spoken"),
    [
        (["COMPLETED", "COMPLETED"], "COMPLETED"),
        (["COMPLETED", "TIMEOUT"], "TIMEOUT"),
        (["FAILED", "COMPLETING"], "COMPLETING"),
        (["FAILED", "SOMETHING_NEW"], "SOMETHING_NEW"),
    ],
)
def test_a_job_may_change_while_a_part_may(names: list[str], spoken: str) -> None:
    assert combine([JobState(name=name) for name in names]).name == spoken


# sacct(1) and squeue(1) of 22.05 to 25.05: base states and the flags that are shown in their place.
STATES = {
    "final": "BOOT_FAIL CANCELLED COMPLETED DEADLINE FAILED LAUNCH_FAILED NODE_FAIL OUT_OF_MEMORY PREEMPTED"
    " RECONFIG_FAIL REVOKED TIMEOUT",
    "waiting": "PENDING REQUEUED REQUEUE_FED REQUEUE_HOLD RESV_DEL_HOLD SPECIAL_EXIT",
    "neither": "COMPLETING CONFIGURING EXPEDITING POWER_UP_NODE RESIZING RUNNING SIGNALING STAGE_OUT STOPPED SUSPENDED"
    " UPDATE_DB UNHEARD_OF",
}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in STATES.items() for name in names.split()])
def test_every_state(kind: str, name: str) -> None:
    state = JobState(name=name)
    assert (state.is_final, state.is_waiting) == (kind == "final", kind == "waiting")
    assert state.is_held == (name in {"REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"})


def test_the_list_of_final_states_has_no_others() -> None:
    assert set(STATES["final"].split()) == FINAL


def test_a_pending_job_may_be_held() -> None:
    for reason in ("JobHeldUser", "JobHeldAdmin", "job requeued in held state"):
        assert JobState(name="PENDING", reason=reason).is_held
    assert not JobState(name="PENDING", reason="Priority").is_held


def test_expected_start_in_local_time(tools: Path) -> None:
    tool(tools, "squeue", row("7", "PENDING", start="2026-01-01T00:00:00", reason="Resources"))
    state = job_state("7")
    assert state is not None and state.start is not None
    assert abs(state.start - 1_767_225_600) < 86_400


def test_forbidden_accounting_is_no_accounting(tools: Path) -> None:
    tool(tools, "squeue", NO_SUCH)
    (tools / "bin" / "sacct").mkdir()
    assert job_state("7") is None


@pytest.mark.parametrize("script", [AWAY, "sleep 600"], ids=["refused", "silent"])
def test_a_controller_that_is_away_is_an_error(tools: Path, script: str) -> None:
    tool(tools, "squeue", f"exec {script}" if script.startswith("sleep") else script)
    with pytest.raises(ControllerAway, match=r"contact slurm controller|did not answer within 0\.3 s"):
        job_states(["7"], timeout_s=0.3)


def test_without_slurm_nothing_is_known(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tools / "bin"))
    with pytest.raises(ControllerAway, match="squeue: not found"):
        job_state("7")


@pytest.mark.parametrize(
    ("state", "code"),
    [
        (JobState(name="COMPLETED"), 0),
        (JobState(name="FAILED", exit_code=5), 5),
        (JobState(name="CANCELLED", exit_code=143), 130),
        (JobState(name="TIMEOUT"), 1),
        (JobState(name="NODE_FAIL"), 1),
    ],
)
def test_only_completed_is_success(state: JobState, code: int) -> None:
    assert state.outcome == code


def test_a_watch_asks_less_and_less_often(tools: Path) -> None:
    tool(tools, "squeue", row("7", "RUNNING"))
    now = 0.0
    watch = StateWatch("7", clock=lambda: now)
    while now < 600:
        assert watch.state == JobState(name="RUNNING")
        now += 0.25
    assert len(calls(tools)) < 12 + 600 / LONGEST_INTERVAL_S
    tool(tools, "squeue", row("7", "COMPLETED"))
    watch.expect_change()
    now += 2.0
    assert watch.state == JobState(name="COMPLETED")
    assert not watch.is_open


def test_a_watch_keeps_what_it_knew_while_the_controller_is_away(tools: Path) -> None:
    tool(tools, "squeue", row("7", "RUNNING"))
    now = 0.0
    watch = StateWatch("7", clock=lambda: now)
    assert watch.state == JobState(name="RUNNING")
    tool(tools, "squeue", AWAY)
    (tools / "calls").unlink()
    while now < 600:
        now += 0.5
        assert watch.state == JobState(name="RUNNING")
    assert watch.problem is not None and "Unable to contact" in watch.problem
    assert len(calls(tools)) < 6 + 600 / LONGEST_SILENCE_S
    tool(tools, "squeue", row("7", "FAILED", 256))
    now += LONGEST_SILENCE_S
    assert watch.state == JobState(name="FAILED", exit_code=1)
    assert watch.problem is None


def test_a_site_cannot_change_the_format_of_times(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_TIME_FORMAT", "%H")
    tool(tools, "squeue", f'echo "$SLURM_TIME_FORMAT" > {tools}/format; ' + row("7", "RUNNING"))
    assert job_state("7") is not None
    assert (tools / "format").read_text() == "standard\n"
    assert os.environ["SLURM_TIME_FORMAT"] == "%H"
