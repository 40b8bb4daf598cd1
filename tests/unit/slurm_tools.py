"""SLURM's programs as shell scripts that print what real ones print; jobs of other tests ask a real SLURM."""

from __future__ import annotations

from pathlib import Path

import pytest

NO_SUCH = "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1"
AWAY = "echo 'slurm_load_jobs error: Unable to contact slurm controller (connect failure)' >&2; exit 1"
OFF = "echo 'Slurm accounting storage is disabled' >&2; exit 1"


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is searched first for SLURM's programs; each call of one adds a line to ``calls``."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    return tmp_path


def tool(folder: Path, name: str, script: str) -> None:
    """Makes one program."""
    path = folder / "bin" / name
    path.write_text(f'#!/bin/sh\necho "{name} $*" >> {folder}/calls\n{script}\n')
    path.chmod(0o755)


def row(job_id: str, state: str, status: int | str = 0, start: str = "N/A", reason: str = "None") -> str:
    """A line of ``squeue``, as it pads it."""
    return f"echo '{job_id:<40}{state:<24}{status:<12}{start:<24}{reason:<80}'"


def calls(folder: Path) -> list[str]:
    """The command lines so far."""
    path = folder / "calls"
    return path.read_text().splitlines() if path.exists() else []
