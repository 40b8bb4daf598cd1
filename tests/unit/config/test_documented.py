"""Examples in the tables of the documents: every override that stands there composes as it is written."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from launcher.config import compose

ROOT = Path(__file__).parents[3]
OVERRIDE = re.compile(r"[+~]{0,2}[a-z]\w*(\.\w+)*=\S.*")


def table_examples() -> list[str]:
    """Code in cells of tables that consists of overrides: ``+cluster=slurm cluster.partition=gpu``."""
    pages = [ROOT / "README.md", *sorted((ROOT / "launcher" / "docs").glob("**/*.md"))]
    # Its cells are docstrings, which name settings of their own group without the group.
    pages.remove(ROOT / "launcher" / "docs" / "configuration.md")
    rows = [line for page in pages for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    spans = [span.replace(r"\|", "|") for row in rows for span in re.findall(r"`([^`]+)`", row)]
    return [span for span in dict.fromkeys(spans) if all(OVERRIDE.fullmatch(word) for word in words(span))]


def words(span: str) -> list[str]:
    try:
        return shlex.split(span)
    except ValueError:
        return [span]


@pytest.mark.parametrize("example", table_examples())
def test_an_example_in_a_table_composes(example: str) -> None:
    typed = words(example)
    slurm = [] if any(word.lstrip("+").startswith("cluster=") for word in typed) else ["+cluster=slurm"]

    compose([*slurm, *typed])


def test_there_are_examples_and_one_of_them_names_a_free_option_of_sbatch() -> None:
    assert any("cluster.sbatch.comment=rl" in example for example in table_examples())
