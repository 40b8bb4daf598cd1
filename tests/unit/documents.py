"""The project's Markdown files taken apart: commands, programs, tables, links, and the settings that they name.

A comment right before a block says what it is::

    <!-- run command -->               sets up a machine; CI executes it
    <!-- file: NAME -->                a file that the tests write and execute
    <!-- not executed: REASON -->      an example that the tests leave out
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("", "launcher", "tests", "conf", "sbatch_templates", ".github")
BLOCK = re.compile(
    r"(?:^<!-- (?P<note>.+?) -->\n+)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
NOT_EXECUTED = "not executed: "
FILE = "file: "


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One fenced block."""

    language: str
    text: str
    note: str
    """The comment before it; empty if there is none."""

    @property
    def is_executed(self) -> bool:
        """Whether the tests execute it as a command, or check it as a fragment of a program."""
        return not self.note


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One Markdown file."""

    path: Path
    text: str

    @property
    def name(self) -> str:
        """Its path in the repository."""
        return str(self.path.relative_to(ROOT))

    def blocks(self, language: str | None = None) -> list[Block]:
        """Its fenced blocks of a language; all of them if None."""
        return [
            Block(language=found["language"], text=found["text"], note=found["note"] or "")
            for found in BLOCK.finditer(self.text)
            if language in (None, found["language"])
        ]

    def console_commands(self) -> list[str]:
        """The commands of its console blocks; a backslash at the end of a line joins it to the next one."""
        text = "".join(block.text for block in self.blocks("console") if block.is_executed)
        return [command.replace("\n", " ") for command in re.sub(r"\\\n +", "", text).splitlines()]

    def tables(self) -> Iterator[tuple[list[str], list[list[str]]]]:
        """Its tables: the head's cells, and the rows' cells."""
        for table in re.findall(r"^(\|.*\n\|[-|]+\n(?:\|.*\n?)+)", self.text, re.MULTILINE):
            head, _, *rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines()]
            yield [cell.strip("| ") for cell in head], [[cell.strip("| ") for cell in row] for row in rows]

    def table_commands(self) -> list[str]:
        """The first column of its tables whose head is ``command``."""
        rows = [row for head, rows in self.tables() if head[0] == "command" for row in rows]
        return [found[1] for row in rows if (found := re.fullmatch(r"`([^`]+)`", row[0]))]

    def links(self) -> list[str]:
        """Where its links within the repository lead: files, with or without ``#heading``, and headings."""
        prose = re.sub(r"^```.*?^```$", "", self.text, flags=re.MULTILINE | re.DOTALL)
        return [link for link in re.findall(r"\]\(([^)\s]+)\)", prose) if not link.startswith("http")]

    def anchors(self) -> set[str]:
        """What a link to each of its headings is called."""
        headings = re.findall(r"^#+ (.+)$", self.text, re.MULTILINE)
        return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}

    def named_settings(self, groups: Sequence[str]) -> list[str]:
        """Settings such as ``trainer.lr`` that the text names in backticks, with or without a value."""
        prose = re.sub(r"^```.*?^```$", "", self.text, flags=re.MULTILINE | re.DOTALL)
        words = [word for span in re.findall(r"`([^`\n]+)`", prose) for word in span.split()]
        found = [re.match(rf"\+?((?:{'|'.join(groups)})\.[a-z_]+(?:\.\w+)*)(?:=|\Z)", word) for word in words]
        return [match[1] for match in found if match is not None and not match[1].endswith(".py")]


def documents() -> list[Document]:
    """Every Markdown file of the project."""
    paths = {path for folder in FOLDERS for path in (ROOT / folder).glob("**/*.md" if folder else "*.md")}
    return [Document(path=path, text=path.read_text(encoding="utf-8")) for path in sorted(paths)]


def document(name: str) -> Document:
    """One of them by its path in the repository."""
    return next(found for found in documents() if found.name == name)


def commands() -> list[str]:
    """Every command that a document shows, once."""
    return list(dict.fromkeys(c for d in documents() for c in (*d.console_commands(), *d.table_commands())))


def files() -> dict[str, str]:
    """The complete files that documents show, by name."""
    blocks = [block for found in documents() for block in found.blocks()]
    return {block.note.removeprefix(FILE): block.text for block in blocks if block.note.startswith(FILE)}
