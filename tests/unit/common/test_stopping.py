"""What a trainer's program reads about a stop."""

from __future__ import annotations

import os
from typing import Any

import pytest

from launcher.common.env import LAUNCHER_STOP_FILE
from launcher.stopping import is_stop_requested, should_stop


def test_a_program_looks_for_a_file(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(LAUNCHER_STOP_FILE, raising=False)
    assert not is_stop_requested()  # outside of a run
    monkeypatch.setenv(LAUNCHER_STOP_FILE, str(tmp_path / "stop"))
    assert not should_stop()
    (tmp_path / "stop").touch()
    assert is_stop_requested()
    assert "LAUNCHER_CONTROL" not in os.environ
    assert should_stop()
