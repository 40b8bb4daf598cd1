"""The page about events says what the source says."""

from __future__ import annotations

from pathlib import Path

import launcher
from launcher.events.reference import render
from launcher.events.schema import EVENT_KINDS

PAGE = Path(launcher.__file__).parent / "docs" / "events.md"


def test_the_page_is_current() -> None:
    command = "python -m launcher.events.reference > launcher/docs/events.md"
    assert PAGE.read_text(encoding="utf-8") == render(), f"run: {command}"


def test_every_kind_has_a_section() -> None:
    assert all(f"\n## {name}\n" in render() for name in EVENT_KINDS)
