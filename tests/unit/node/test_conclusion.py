"""How often a job is queued again, by what ended its attempts."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from launcher.common.errors import ProcessFailure
from launcher.common.run_dir import End, claim, record_begin, record_end
from launcher.config import Config
from launcher.node.context import NodeEnvironment
from launcher.node.outcome import check_limits, passed_limit


def config(**limits: int) -> Config:
    found = Config()
    for name, value in limits.items():
        setattr(found.restart, name, value)
    return found


@pytest.mark.parametrize(
    ("end", "setting"),
    [
        (End.PREEMPTED, "max_preemptions"),
        (End.TIMED_OUT, "max_timeouts"),
        (End.FAILED, "max_failures"),
        (End.LOST, "max_failures"),
    ],
)
def test_each_kind_has_its_own_limit(end: End, setting: str) -> None:
    limited = config(**{setting: 2})
    assert passed_limit(limited, Counter({end: 2})) is None
    words = passed_limit(limited, Counter({end: 3}))
    assert words is not None and words.endswith(f"3 times, more than `restart.{setting}` (2).")
    others = Counter({other: 4 for other in End if other is not end and {other, end} != {End.FAILED, End.LOST}})
    assert passed_limit(config(**{setting: 2, "max_failures": 2 if setting == "max_failures" else 9}), others) is None


def test_stops_that_somebody_asked_for_have_none() -> None:
    assert passed_limit(config(), Counter({End.STOPPED: 1000})) is None


def test_a_job_that_slurm_queued_again_too_often_ends(tmp_path: Path) -> None:
    for _ in range(2):
        number = claim(tmp_path)
        record_begin(tmp_path, number, "7")
        record_end(tmp_path, number, End.PREEMPTED)
    number = claim(tmp_path)
    record_begin(tmp_path, number, "7")
    node = NodeEnvironment(node_rank=0, hostnames=("a",), gpus=None, job_id="7", attempt=number, is_local=False)
    check_limits(config(max_preemptions=2), tmp_path, node)
    with pytest.raises(ProcessFailure, match=r"was preempted 2 times, more than `restart.max_preemptions` \(1\)"):
        check_limits(config(max_preemptions=1), tmp_path, node)
