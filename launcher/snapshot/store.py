"""Copies of files under the hash of their names and contents: made once, shared by all runs with the same code."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from launcher.common.errors import ConfigError
from launcher.observe.find import is_run
from launcher.snapshot.record import RENDERED, SNAPSHOT, read_record

STORE = ".snapshots"
DRAFT = ".draft-"
"""Begins the name of what is not complete, or not any more."""

MANIFEST = "manifest.json"
TREE = "tree"
DIGEST_LENGTH = 20

MAX_FILES = 20_000
MAX_BYTES = 256 * 2**20
STALE_DRAFT_S = 86_400.0
SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeEntry:
    """One name of a tree."""

    path: str
    """Relative, with ``/``."""

    kind: str
    """``file``, ``exec`` (a file with the executable bit) or ``link``."""

    content: str
    """A file's SHA-256, a link's target."""

    size: int


def link(path: str, target: str) -> TreeEntry:
    """A symbolic link that is not in the source as such."""
    return TreeEntry(path=path, kind="link", content=target, size=0)


def read_entries(root: Path, names: Iterable[str]) -> Iterator[TreeEntry]:
    """What is at ``names`` now; what is not there any more, or is no file, is left out."""
    top = root.resolve()
    # Paths are text here: there may be thousands, and a Path takes longer to make than a small file to read.
    above = f"{root}/"
    for name in names:
        path = above + name
        try:
            mode = os.lstat(path).st_mode
            if stat.S_ISLNK(mode):
                yield link(name, _target(top, Path(path)))
            elif stat.S_ISREG(mode):
                with open(path, "rb") as file:  # noqa: PTH123
                    data = file.read()
                yield TreeEntry(
                    path=name,
                    kind="exec" if mode & stat.S_IXUSR else "file",
                    content=hashlib.sha256(data).hexdigest(),
                    size=len(data),
                )
        except (FileNotFoundError, NotADirectoryError):
            continue


def _target(top: Path, path: Path) -> str:
    """Where a link points to, from a copy of the tree: inside the copy if it was inside, to the same place if not."""
    target = path.readlink()
    here = path.parent.resolve()
    there = Path(os.path.normpath(here / target))
    if not there.is_relative_to(top):
        return str(there)
    return os.path.relpath(there, here) if target.is_absolute() else str(target)


def digest_of(entries: Iterable[TreeEntry]) -> str:
    """Hash of a tree; the order does not matter."""
    lines = sorted(f"{entry.path}\0{entry.kind}\0{entry.content}\0" for entry in entries)
    return hashlib.sha256(os.fsencode("".join(lines))).hexdigest()[:DIGEST_LENGTH]


def check_size(root: Path, names: Iterable[str], links: Iterable[str] = ()) -> None:
    """Returns if the files are few and small enough to be copied, and the links few enough to be made.

    Raises:
        ConfigError: they are not; names the largest.
    """
    sizes: dict[str, int] = {}
    for name in names:
        try:
            sizes[name] = os.lstat(f"{root}/{name}").st_size
        except (FileNotFoundError, NotADirectoryError):
            continue
    total = sum(sizes.values())
    if total > MAX_BYTES:
        largest = sorted(sizes, key=lambda name: -sizes[name])[:SHOWN]
        named = ", ".join(f"{name} ({_mib(sizes[name])})" for name in largest)
        raise ConfigError([_too_large(root, f"{_mib(total)}, more than {_mib(MAX_BYTES)}", f"largest: {named}")])
    every = [*sizes, *links]
    if len(every) > MAX_FILES:
        folders: dict[str, int] = {}
        for name in every:
            folder = name.rpartition("/")[0] or "."
            folders[folder] = folders.get(folder, 0) + 1
        fullest = sorted(folders, key=lambda folder: -folders[folder])[:SHOWN]
        named = ", ".join(f"{folder}/ ({folders[folder]})" for folder in fullest)
        raise ConfigError([_too_large(root, f"{len(every)} files, more than {MAX_FILES}", f"most in: {named}")])


def _too_large(root: Path, how: str, where: str) -> str:
    return (
        f"`snapshot` (true) would copy {how}, from {root}; {where}. HINT: name data and results in .gitignore (what git"
        " ignores is linked, not copied), or set `snapshot=false` to run the checkout as it is when the job starts."
    )


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"


def store(root: Path, entries: Iterable[TreeEntry], output_dir: Path) -> tuple[str, Path]:
    """Copies a tree, unless it is there already. Two submissions at once may both do it; one copy stays.

    Returns:
        The hash of what was copied, which is that of ``entries`` unless a file was edited meanwhile, and where it is.

    Raises:
        OSError: it cannot be written.
    """
    entries = list(entries)
    home = _home(output_dir)
    digest = digest_of(entries)
    if (home / digest).is_dir():
        # As good as new: it is not pruned before the run that is about to use it is recorded.
        os.utime(home / digest)
        return digest, home / digest / TREE
    draft = home / f"{DRAFT}{secrets.token_hex(6)}"
    try:
        copied = list(_copy(root, entries, draft / TREE))
        digest = digest_of(copied)
        (draft / TREE).mkdir(parents=True, exist_ok=True)
        (draft / MANIFEST).write_text(
            json.dumps({entry.path: [entry.kind, entry.content] for entry in copied}), encoding="utf-8"
        )
        try:
            draft.rename(home / digest)
        except OSError:
            if not (home / digest).is_dir():
                raise
    finally:
        if draft.exists():
            shutil.rmtree(draft)
    return digest, home / digest / TREE


def _home(output_dir: Path) -> Path:
    """Where snapshots are kept: beside the runs, in a directory of this user's own."""
    home = output_dir / STORE
    home.mkdir(parents=True, exist_ok=True)
    if home.stat().st_uid != os.getuid():
        # Another user's might change under our runs, and may not be writable.
        home = output_dir / f"{STORE}-{os.getuid()}"
        home.mkdir(exist_ok=True)
    for draft in home.glob(f"{DRAFT}*"):
        # Of a submission that was killed; others come and go meanwhile.
        with contextlib.suppress(FileNotFoundError):
            if time.time() - draft.stat().st_mtime > STALE_DRAFT_S:
                shutil.rmtree(draft, ignore_errors=True)
    return home


def _copy(root: Path, entries: Iterable[TreeEntry], tree: Path) -> Iterator[TreeEntry]:
    for entry in entries:
        path = tree / entry.path
        path.parent.mkdir(parents=True, exist_ok=True)
        if entry.kind == "link":
            path.symlink_to(entry.content)
            yield entry
            continue
        try:
            data = (root / entry.path).read_bytes()
        except FileNotFoundError:
            # Removed just now.
            continue
        path.write_bytes(data)
        # Read-only: a program that rewrites its own files would change those of every other run with this code.
        path.chmod(0o555 if entry.kind == "exec" else 0o444)
        yield TreeEntry(path=entry.path, kind=entry.kind, content=hashlib.sha256(data).hexdigest(), size=len(data))


def read_manifest(tree: Path) -> dict[str, tuple[str, str]]:
    """Kind and content of every name that was copied to ``tree``.

    Raises:
        OSError: the snapshot is gone.
    """
    recorded: Mapping[str, list[str]] = json.loads((tree.parent / MANIFEST).read_text(encoding="utf-8"))
    return {path: (kind, content) for path, (kind, content) in recorded.items()}


_DEPTHS = ("*", "*/*", "*/*/*")
"""Runs lie right below the output directory; a person may have sorted them into folders."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneResult:
    """What was done."""

    removed: tuple[str, ...]
    """Names of snapshots."""

    kept: tuple[str, ...]
    size: int
    """Bytes that were freed."""

    def text(self) -> str:
        """For people."""
        kept = f"{len(self.kept)} in use or from today"
        what = "1 snapshot" if len(self.removed) == 1 else f"{len(self.removed)} snapshots"
        return f"removed {what} that no run uses, {self.size / 2**20:.1f} MiB; kept {kept}"


def prune(output_dir: Path) -> PruneResult:
    """Removes them. Those of the last day stay: a submission that is under way may be about to use one.

    Raises:
        OSError: one cannot be removed.
    """
    used = set(_used(output_dir))
    removed, kept, size = [], [], 0
    for home in sorted(output_dir.glob(f"{STORE}*")):
        for path in sorted(path for path in home.iterdir() if not path.name.startswith(DRAFT)):
            if path.resolve() in used or time.time() - path.stat().st_mtime < STALE_DRAFT_S:
                kept.append(path.name)
                continue
            # Renamed first: a tree that is half removed must not be used.
            draft = home / f"{DRAFT}{secrets.token_hex(6)}"
            path.rename(draft)
            size += sum(file.lstat().st_size for file in draft.rglob("*") if not file.is_dir())
            shutil.rmtree(draft)
            removed.append(path.name)
    return PruneResult(removed=tuple(removed), kept=tuple(kept), size=size)


def _used(output_dir: Path) -> Iterator[Path]:
    runs = [path.parent for depth in _DEPTHS for path in output_dir.glob(f"{depth}/{SNAPSHOT}") if is_run(path.parent)]
    for directory in (*runs, *(output_dir / RENDERED).glob("*/")):
        record = read_record(directory)
        for tree in (record.code, record.launcher) if record is not None else ():
            if tree is not None:
                yield Path(os.path.realpath(tree.tree)).parent
