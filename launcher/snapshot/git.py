"""A working directory by git: its commit, the changes since, the files that are tracked or ignored."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.common.errors import LauncherError

TIMEOUT_S = 60.0
EMPTY_TREE = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"
"""What a repository without a commit is compared with; git knows it everywhere."""

_BRANCHES = "refs/heads/"
_SUBMODULE = "160000"
_OTHER = "? "
_FOREIGN = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY")


class GitError(LauncherError):
    """A git command failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GitState:
    """Where a working directory's repository stands."""

    root: Path
    """Top directory of the working tree."""

    commit: str | None
    """Full hash; None before the first commit."""

    branch: str | None
    """None when the HEAD is detached."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """The names in a working tree, submodules and repositories inside it included; relative, with ``/``."""

    files: tuple[str, ...]
    """Tracked, or untracked and not ignored. One that was deleted or replaced since may be among them."""

    ignored: tuple[str, ...]
    """What git ignores; a directory that is ignored as a whole is one name."""


def git_state(directory: Path) -> GitState | None:
    """The repository that ``directory`` belongs to.

    Returns:
        None if there is none, or if it ignores ``directory``, which then is no part of it.

    Raises:
        GitError: there is one that git cannot read, or git is missing.
    """
    if not any((parent / ".git").exists() for parent in (directory, *directory.parents)):
        return None
    lines = _git(
        directory, "rev-parse", "--show-toplevel", "HEAD", "--symbolic-full-name", "HEAD", accept=(0, 128)
    ).splitlines()
    if not lines:
        raise GitError(f"git finds no working tree at {directory}.")
    root = Path(lines[0])
    if directory != root and _git(directory, "check-ignore", str(directory), accept=(0, 1)):
        return None
    match lines[1:]:
        case [commit, name] if name.startswith(_BRANCHES):
            return GitState(root=root, commit=commit, branch=name.removeprefix(_BRANCHES))
        case [commit, _]:
            return GitState(root=root, commit=commit, branch=None)
    # Without a commit git prints the branch only when nothing else is requested.
    branch = _git(directory, "symbolic-ref", "--quiet", "--short", "HEAD", accept=(0, 1)).strip()
    return GitState(root=root, commit=None, branch=branch or None)


def list_files(root: Path, ignore: str | None = None) -> Listing:
    """Every name in the working tree at ``root``.

    Args:
        ignore: a directory, relative to ``root``, that counts as ignored: git does not even look into it.

    Raises:
        GitError: git cannot read it.
    """
    exclude = ["--exclude-standard"]
    if ignore is not None:
        exclude.append("--exclude=/" + re.sub(r"([\\*?\[ ])", r"\\\1", ignore) + "/")
    files: list[str] = []
    inner: list[str] = []
    for line in _lines(_git(root, "ls-files", "-z", "-t", "--stage", "--others", *exclude)):
        if line.startswith(_OTHER):
            name = line.removeprefix(_OTHER)
            # A repository inside this one that is no submodule of it.
            (inner if name.endswith("/") else files).append(name.rstrip("/"))
        else:
            about, _, name = line.partition("\t")
            (inner if about.split()[1] == _SUBMODULE else files).append(name)
    others = _git(root, "ls-files", "-z", "--others", "--ignored", *exclude, "--directory")
    ignored = [name.rstrip("/") for name in _lines(others)]
    for name in inner:
        # A submodule that was never checked out is an empty directory.
        if (root / name / ".git").exists():
            below = list_files(root / name)
            files += [f"{name}/{file}" for file in below.files]
            ignored += [f"{name}/{file}" for file in below.ignored]
    # A conflict has one line per side.
    return Listing(files=tuple(sorted(set(files))), ignored=tuple(sorted(set(ignored))))


def changes(state: GitState, without: Sequence[str] = ()) -> bytes:
    """Tracked changes since the commit, as a patch for ``git apply``; empty if there are none.

    Args:
        without: names that are left out.

    Raises:
        GitError: git failed.
    """
    exclude = ["--", ".", *(f":(exclude,literal){name}" for name in without)] if without else []
    arguments = ("diff", "--binary", "--no-color", "--no-ext-diff", "--no-textconv", "--submodule=diff")
    return _run(state.root, [*arguments, state.commit or EMPTY_TREE, *exclude], (0,))


def _git(directory: Path, *arguments: str, accept: tuple[int, ...] = (0,)) -> str:
    return os.fsdecode(_run(directory, arguments, accept))


def _run(directory: Path, arguments: Sequence[str], accept: tuple[int, ...]) -> bytes:
    # A checkout that belongs to somebody else is refused otherwise; its code is about to be run anyway.
    command = ["git", "-c", "safe.directory=*", "-c", "core.quotePath=false", "-C", str(directory), *arguments]
    environ = {name: value for name, value in os.environ.items() if name not in _FOREIGN}
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            # A query must not write into the index.
            env={**environ, "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"},
            timeout=TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError as error:
        raise GitError("`git` is not in PATH.") from error
    except subprocess.TimeoutExpired as error:
        raise GitError(f"`git {arguments[0]}` did not end within {TIMEOUT_S:g} s in {directory}.") from error
    if done.returncode not in accept:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise GitError(f"`git {arguments[0]}` failed in {directory}: {lines[0] if lines else done.returncode}.")
    return done.stdout


def _lines(text: str) -> list[str]:
    return [line for line in text.split("\0") if line]
