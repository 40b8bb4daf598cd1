"""One small file per node on the shared filesystem, which others must find: that it is shared, and shows the same."""

from __future__ import annotations

import secrets
import time
from pathlib import Path

from launcher.control.preflight_report import PeerReport

DIRECTORY = "preflight"
LOOK_AGAIN_S = 0.05


class Canary:
    """A node's own file. Its name holds a word that nobody can know in advance, so no cache can answer for it."""

    def __init__(self, attempt_dir: Path, node_rank: int) -> None:
        self.word = secrets.token_hex(8)
        self._directory = attempt_dir / DIRECTORY
        self._path = self._directory / name_of(node_rank, self.word)

    def write(self) -> None:
        """Writes it.

        Raises:
            OSError: the filesystem does not take it.
        """
        self._directory.mkdir(parents=True, exist_ok=True)
        self._path.write_text(self.word, encoding="utf-8")

    def remove(self) -> None:
        """Takes it away, and the directory with it once that is empty."""
        try:
            self._path.unlink(missing_ok=True)
            self._directory.rmdir()
        except OSError:
            return  # the others' are still there


def name_of(node_rank: int, word: str) -> str:
    """File name of a node's canary."""
    return f"{node_rank:05d}-{word}"


def read(attempt_dir: Path, wanted: dict[int, str], *, timeout_s: float) -> list[PeerReport]:
    """Reads the canaries of a few nodes; what a slow filesystem shows late is waited for.

    Args:
        wanted: the word of each node to read, by node rank.
    """
    directory = attempt_dir / DIRECTORY
    deadline = time.monotonic() + timeout_s
    missing = dict(wanted)
    while True:
        for rank, word in list(missing.items()):
            if _content(directory / name_of(rank, word)) == word:
                del missing[rank]
        if not missing or time.monotonic() > deadline:
            return [_unseen(rank, timeout_s) for rank in missing]
        time.sleep(LOOK_AGAIN_S)


def list_all(attempt_dir: Path, wanted: dict[int, str], *, timeout_s: float) -> list[PeerReport]:
    """Looks for the canary of every node by listing their directory, which costs the same for any number of nodes."""
    directory = attempt_dir / DIRECTORY
    deadline = time.monotonic() + timeout_s
    while True:
        there = {path.name for path in directory.iterdir()}
        missing = [rank for rank, word in wanted.items() if name_of(rank, word) not in there]
        if not missing or time.monotonic() > deadline:
            return [_unseen(rank, timeout_s) for rank in missing]
        time.sleep(LOOK_AGAIN_S)


def _content(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None


def _unseen(rank: int, timeout_s: float) -> PeerReport:
    text = f"what it writes into the run directory is not seen after {timeout_s:g} s: is `output_dir` shared?"
    return PeerReport(name="canary", about=rank, text=text)
