"""Looks at a working tree: what a snapshot of it copies, and what it links."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path, PurePosixPath

from launcher.config.secrets import is_secret_file
from launcher.snapshot.git import list_files
from launcher.snapshot.tree import TreeEntry, check_size, link, read_entries

PLACEHOLDERS = frozenset({".gitkeep", ".gitignore", ".keep"})
_CACHES = frozenset({"__pycache__", ".git", ".hypothesis", ".pytest_cache", ".mypy_cache", ".ruff_cache"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """A working tree as it is now."""

    entries: tuple[TreeEntry, ...]
    copied: frozenset[str]
    """Names of the entries that are copied."""

    linked: frozenset[str]
    """Names that lead back into the original: what git ignores, folders for results, files with secrets."""

    hidden: frozenset[str]
    """The files with secrets."""


def look(root: Path, output_dir: Path, secrets: Mapping[str, str]) -> Scan:
    """What a snapshot of the repository at ``root`` is made of.

    Args:
        output_dir: never part of it.
        secrets: values by name; a file that holds one is not copied.

    Raises:
        GitError: git cannot read it.
        ConfigError: it is too large.
    """
    is_inside = output_dir != root and output_dir.is_relative_to(root)
    runs = {output_dir.relative_to(root).as_posix()} if is_inside else set()
    listing = list_files(root, ignore=next(iter(runs), None))
    names = [name for name in listing.files if not is_below(name, runs)]
    ignored = {name for name in listing.ignored if _is_wanted(name) and not is_below(name, runs)}
    folders = _placeholder_folders(names)
    names = [name for name in names if not is_below(name, folders)]
    check_size(root, names, ignored)
    values = [value.encode() for value in secrets.values()]
    hidden = {name for name in names if is_secret_file(name.rpartition("/")[2]) or _holds(root / name, values)}
    linked = {name for name in ignored | folders | hidden if os.path.lexists(root / name)}
    copies = list(read_entries(root, [name for name in names if name not in hidden]))
    links = [link(name, str(root / name)) for name in sorted(linked) if not is_below(name, linked - {name})]
    return Scan(
        entries=(*copies, *links),
        copied=frozenset(entry.path for entry in copies),
        linked=frozenset(linked),
        hidden=frozenset(hidden),
    )


def look_at_launcher(home: Path) -> tuple[TreeEntry, ...]:
    """What a snapshot of the launcher's own checkout is made of."""
    paths = [path for part in ("launcher", "conf", "sbatch_templates") for path in (home / part).rglob("*")]
    names = sorted(path.relative_to(home).as_posix() for path in paths if not path.is_dir())
    return tuple(read_entries(home, [name for name in names if _is_wanted(name)]))


def is_below(name: str, folders: Collection[str]) -> bool:
    """Whether ``name`` is one of ``folders``, or in one of them."""
    if not folders or name in folders:
        return bool(folders)
    return "." in folders or any(name[:end] in folders for end, letter in enumerate(name) if letter == "/" and end)


def _is_wanted(name: str) -> bool:
    """Whether a name that git ignores is linked: data and environments are, caches are not."""
    return not (_CACHES & set(PurePosixPath(name).parts) or name.endswith(".pyc"))


def _placeholder_folders(names: list[str]) -> set[str]:
    """Directories that are kept in git only to exist. Results go there, so they are the original ones in a snapshot."""
    inside: dict[str, set[str]] = {}
    for name in names:
        *folders, file = name.split("/")
        for folder in accumulate(folders, "{}/{}".format):
            inside.setdefault(folder, set()).add(file)
    return {folder for folder, files in inside.items() if files <= PLACEHOLDERS}


def _holds(path: Path, values: list[bytes]) -> bool:
    if not values:
        return False
    try:
        data = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
    except OSError:
        return False
    return any(value in data for value in values)
