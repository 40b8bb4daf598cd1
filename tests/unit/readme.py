"""README.md taken apart: its commands, its Python, its links, and the settings that it names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text()
MARK = re.compile(r"<!-- (\w+) command -->\n+\Z")


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language, without those under a mark such as ``<!-- test command -->``."""
    found = re.finditer(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    return [block.group(1) for block in found if MARK.search(TEXT[: block.start()]) is None]


def marked() -> list[str]:
    """The names of the marked blocks, whose commands set up a machine."""
    return [
        found.group(1) for found in re.finditer(r"<!-- (\w+) command -->\n```console\n.+\n```$", TEXT, re.MULTILINE)
    ]


def console_commands() -> list[str]:
    """The commands of the console blocks; a backslash at the end of a line joins it to the next one."""
    text = "".join(blocks("console"))
    return [command.replace("\n", " ") for command in re.sub(r"\\\n +", "", text).splitlines()]


def table_commands() -> list[str]:
    """The first column of every table whose head is ``command``."""
    tables = re.findall(r"^\| command \|.*\n\|[-|]+\n((?:\|.*\n)+)", TEXT, re.MULTILINE)
    return [row.group(1) for table in tables for row in re.finditer(r"^\| `([^`]+)` \|", table, re.MULTILINE)]


def links() -> list[str]:
    """Where links within the repository lead: files, and ``#headings``."""
    return [link for link in re.findall(r"\]\(([^)]+)\)", TEXT) if not link.startswith("http")]


def anchors() -> list[str]:
    """What a link to each heading is called."""
    headings = re.findall(r"^#+ (.+)$", TEXT, re.MULTILINE)
    return ["#" + re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]


def named_settings(groups: Sequence[str]) -> list[str]:
    """Settings such as ``trainer.lr`` that the text names in backticks, with or without a value."""
    prose = re.sub(r"^```.*?^```$", "", TEXT, flags=re.MULTILINE | re.DOTALL)
    words = [word for span in re.findall(r"`([^`\n]+)`", prose) for word in span.split()]
    found = [re.match(rf"\+?((?:{'|'.join(groups)})\.[a-z_]+(?:\.\w+)*)(?:=|\Z)", word) for word in words]
    return [match.group(1) for match in found if match is not None]
