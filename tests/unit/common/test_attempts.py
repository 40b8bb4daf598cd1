"""Numbers of attempts, and what is kept of how they ended."""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from launcher.common.paths import sbatch_templates_dir
from launcher.common.run_dir import End, attempt_dir, claim, ends, record_begin, record_end

LOOP = """
set -eo pipefail
RUN_DIR=$1
{lines}
echo $LAUNCHER_ATTEMPT
"""


def test_everybody_gets_another_number(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: claim(tmp_path), range(40)))
    assert sorted(found) == list(range(1, 41))


def script_lines() -> str:
    """The lines of the job script that take a number."""
    text = (sbatch_templates_dir() / "plain.sbatch.j2").read_text()
    begin, end = text.index('mkdir -p "$RUN_DIR/attempts"'), text.index("# The nodes know each other")
    return text[begin:end]


def test_the_job_script_takes_the_next_number(tmp_path: Path) -> None:
    script = LOOP.format(lines=script_lines())

    def run(_: int) -> int:
        done = subprocess.run(["bash", "-c", script, "job", str(tmp_path)], capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert claim(tmp_path) == 1
    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(run, range(8))) == list(range(2, 10))
    assert claim(tmp_path) == 10


def test_the_job_script_ends_where_no_number_can_be_taken(tmp_path: Path) -> None:
    # A file in the place of the directory: not even root can make one below it.
    (tmp_path / "attempts").write_text("")
    script = LOOP.format(lines=script_lines())
    done = subprocess.run(["bash", "-c", script, "job", str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert not done.stdout


def attempt(run_dir: Path, job_id: str | None, *told: End) -> int:
    number = claim(run_dir)
    record_begin(run_dir, number, job_id)
    for end in told:
        record_end(run_dir, number, end)
    return number


def test_ends_are_counted_apart(tmp_path: Path) -> None:
    attempt(tmp_path, "7", End.TIMED_OUT)
    attempt(tmp_path, "7", End.PREEMPTED)
    attempt(tmp_path, "7", End.PREEMPTED, End.TIMED_OUT)  # the last word counts
    attempt(tmp_path, "7")
    claim(tmp_path)  # the nodes never got as far
    number = attempt(tmp_path, "7")
    assert ends(tmp_path, number, "7") == {End.TIMED_OUT: 2, End.PREEMPTED: 1, End.LOST: 1}
    assert ends(tmp_path, 2, "7") == {End.TIMED_OUT: 1}


def test_a_resumed_run_starts_from_zero(tmp_path: Path) -> None:
    attempt(tmp_path, "7", End.FAILED)
    attempt(tmp_path, "8", End.PREEMPTED)
    number = attempt(tmp_path, "8")
    assert ends(tmp_path, number, "8") == {End.PREEMPTED: 1}
    assert ends(tmp_path, attempt(tmp_path, None), None) == {}


def test_a_broken_record_is_a_lost_attempt(tmp_path: Path) -> None:
    first = attempt(tmp_path, "7", End.PREEMPTED)
    (attempt_dir(tmp_path, first) / "end.json").write_text("{")
    assert ends(tmp_path, attempt(tmp_path, "7"), "7") == {End.LOST: 1}
