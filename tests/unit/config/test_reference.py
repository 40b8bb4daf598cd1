"""The page of all settings is what the schema says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from launcher.config import compose
from launcher.config.overrides import setting_at
from launcher.config.reference import docstrings, page
from launcher.config.renamed import RENAMED

PAGE = Path(__file__).parents[3] / "launcher" / "docs" / "configuration.md"


def test_the_page_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), (
        "HINT: python -m launcher.config.reference > launcher/docs/configuration.md"
    )


def test_every_row_is_a_setting_and_has_a_text() -> None:
    rows = re.findall(r"^\| `([^`]+)` \|[^|]*\| (.*) \|$", page(), re.MULTILINE)

    assert len(rows) > 100
    assert [name for name, _ in rows if name not in RENAMED and setting_at(name) is None] == []
    assert [name for name, text in rows if name not in RENAMED and not text] == []


def test_docstrings_belong_to_the_field_above_them() -> None:
    assert docstrings()["TrainerConfig", "steps"] == "Optimizer steps."


@pytest.mark.parametrize("example", re.findall(r"`(['\"]trainer\.command=[^`]+)`", page()))
def test_the_ways_to_write_a_command_work(example: str) -> None:
    command = compose(shlex.split(example)).trainer.command

    assert command is not None
    assert command[:2] == ["python", "train.py"]
    assert command[2] in ("--lr=1e-3", "--tags=a,b")
