"""Why a process failed, from logs as they really look."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launcher.events.failure_kinds import FailureKind
from launcher.events.log_tail import analyze_failure, failure_line

PLAIN = """\
step 1
Traceback (most recent call last):
  File "train.py", line 3, in <module>
    raise ValueError("the loss is not a number")
ValueError: the loss is not a number
"""
CHAINED = """\
Traceback (most recent call last):
  File "a.py", line 1, in <module>
KeyError: 'x'

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "b.py", line 1, in <module>
my.package.errors.RolloutError: no answer
"""
ENGINE_CORE = """\
(EngineCore pid=19) ERROR 11-23 05:36:57 [core.py:1510] EngineCore failed to start.
(EngineCore pid=19) ERROR 11-23 05:36:57 [core.py:1510] Traceback (most recent call last):
(EngineCore pid=19) ERROR 11-23 05:36:57 [core.py:1510]   File "core.py", line 1482, in run_engine_core
(EngineCore pid=19) ERROR 11-23 05:36:57 [core.py:1510] RuntimeError: Worker failed: not enough memory
Process EngineCore:
Traceback (most recent call last):
  File "core.py", line 1482, in run_engine_core
RuntimeError: Worker failed: not enough memory
Traceback (most recent call last):
  File "server.py", line 3, in main
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore': 1}
/x/resource_tracker.py:254: UserWarning: resource_tracker: There appear to be 1 leaked shared_memory objects
  warnings.warn('resource_tracker: There appear to be %d '
"""
PYDANTIC = """\
Traceback (most recent call last):
pydantic_core._pydantic_core.ValidationError: 1 validation error for SchedulerConfig
  Value error, max_num_batched_tokens (1) must be at least max_num_seqs (256).
    For further information visit https://errors.pydantic.dev/2.14/v/value_error
"""
NO_EXCEPTION = "usage: server.py\nlauncher: Port 9000 is taken.\n\n  warnings.warn('x')\n"


@pytest.mark.parametrize(
    ("log", "wanted"),
    [
        (PLAIN, "ValueError: the loss is not a number"),
        (CHAINED, "RolloutError: no answer"),
        (ENGINE_CORE, "RuntimeError: Worker failed: not enough memory"),
        (
            PYDANTIC,
            "ValidationError: 1 validation error for SchedulerConfig Value error, max_num_batched_tokens (1) must be at"
            " least max_num_seqs (256).",
        ),
        (NO_EXCEPTION, "launcher: Port 9000 is taken."),
        ("KeyboardInterrupt\n", "KeyboardInterrupt"),
        (PLAIN + NO_EXCEPTION, "launcher: Port 9000 is taken."),
        ("", None),
    ],
)
def test_the_line_that_says_why(tmp_path: Path, log: str, wanted: str | None) -> None:
    (tmp_path / "log").write_text(log)
    assert failure_line(tmp_path / "log", tmp_path / "none", is_exit=True) == wanted


def test_of_a_killed_process_the_last_line_is_no_reason(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("step 17\n")
    assert failure_line(tmp_path / "log", tmp_path / "none", is_exit=False) is None


def test_a_recorded_exception_comes_first(tmp_path: Path) -> None:
    (tmp_path / "log").write_text(PLAIN + "destroying the process group\n")
    (tmp_path / "error.json").write_text(json.dumps({"message": {"message": "RuntimeError: boom", "extraInfo": {}}}))
    assert failure_line(tmp_path / "log", tmp_path / "error.json", is_exit=True) == "RuntimeError: boom"


def test_a_line_without_end_is_cut(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("RuntimeError: " + "x" * 10_000)
    found = failure_line(tmp_path / "log", tmp_path / "none", is_exit=True)
    assert found is not None
    assert len(found) < 500


@pytest.mark.parametrize(
    ("log", "exit_code", "kind"),
    [
        (PLAIN, 1, FailureKind.USER_CODE),
        ("torch.OutOfMemoryError: CUDA out of memory.\n", 1, FailureKind.GPU_MEMORY),
        ("step 17\n", -9, FailureKind.KILLED),
        ("step 17\n", -11, FailureKind.CRASHED),
        ("step 17\n", None, FailureKind.HUNG),
        ("step 17\n", 1, FailureKind.UNKNOWN),
        ("", 1, FailureKind.UNKNOWN),
    ],
)
def test_the_kind_of_a_failure_follows_from_its_log_and_its_exit_status(
    tmp_path: Path, log: str, exit_code: int | None, kind: FailureKind
) -> None:
    (tmp_path / "log").write_text(log)
    assert analyze_failure(tmp_path / "log", tmp_path / "none", exit_code=exit_code).kind is kind
