"""Copies the code of a run at its submission: the repository that one stands in, and the launcher itself."""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path, PurePosixPath

import launcher
from launcher.common.errors import ConfigError
from launcher.config.secrets import is_secret_file
from launcher.snapshot.git import GitError, GitState, changes, git_state, list_files
from launcher.snapshot.record import CODE, SnapshotRecord, Tree
from launcher.snapshot.store import TreeEntry, check_size, link, read_entries, store


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The code of a submission, copied."""

    directory: Path
    """Working directory of the submission."""

    git: GitState | None
    patch: bytes
    """Tracked changes since the commit, without what is secret."""

    code: Tree | None
    launcher: Tree | None
    copied: frozenset[str] = frozenset()
    """Names of the repository that were copied, relative to its top."""

    linked: frozenset[str] = frozenset()
    """Names that lead back into the original."""

    size: int = 0
    """Bytes copied."""

    notes: tuple[str, ...] = ()
    """What a person should know about it."""

    replay_of: str | None = None
    """Name of the run that this one is a replay of."""

    def text(self) -> str:
        """One line about the code that runs."""
        if self.code is None or self.git is None:
            return "; ".join(self.notes)
        at = f"commit {self.git.commit[:10]}" if self.git.commit else "no commit"
        branch = f" ({self.git.branch})" if self.git.branch else ""
        changed = ", changed since" if self.patch else ""
        size = f"{len(self.copied)} files, {self.size / 2**20:.1f} MiB"
        return "; ".join([f"{at}{branch}{changed}: {size}, snapshot {self.code.digest}", *self.notes])

    def record(self, run_dir: Path) -> SnapshotRecord:
        """The snapshot as the run in ``run_dir`` uses it."""
        folder = self.directory.relative_to(self.code.root) if self.code else Path()
        return SnapshotRecord(
            directory=str(self.directory),
            folder=str(folder),
            code=self.code,
            launcher=self.launcher,
            python_path=tuple(dict.fromkeys(self._python_path(run_dir))),
        )

    def _python_path(self, run_dir: Path) -> Iterator[str]:
        home = launcher_home()
        if self.launcher is not None:
            yield self.launcher.tree
        elif home is not None:
            yield self._moved(str(home), run_dir)
        given = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
        for entry in dict.fromkeys([*given, *_editable_folders()]):
            moved = self._moved(entry, run_dir)
            # What is installed is found without our help, unless it would be found in the checkout.
            if entry in given or moved != entry:
                yield moved

    def _moved(self, path: str, run_dir: Path) -> str:
        """Where ``path`` is in the run's view of the code; itself if it is outside."""
        if self.code is None or not Path(path).is_absolute() or not Path(path).is_relative_to(self.code.root):
            return path
        name = Path(path).relative_to(self.code.root)
        return path if is_below(str(name), self.linked) else os.path.normpath(run_dir / CODE / name)


def create_snapshot(directory: Path, output_dir: Path, secrets: Mapping[str, str]) -> Snapshot:
    """Copies the code that a run submitted from ``directory`` needs, unless it is there already.

    Args:
        directory: absolute; the repository that it is in is copied as it is: commit, changes and untracked files.
        output_dir: absolute; snapshots are kept there, and it is never part of one.
        secrets: values of secrets by name; no file that holds one is copied.

    Raises:
        ConfigError: git cannot read the repository, or it is too large to copy.
        OSError: ``output_dir`` cannot be written.
    """
    directory, output_dir = directory.resolve(), output_dir.resolve()
    try:
        git = git_state(directory)
        if git is None:
            own = _copy_launcher(output_dir)
            what = "only the launcher is snapshotted" if own else "nothing is snapshotted"
            note = f"{directory} is in no git repository: {what}, and the job runs the files that it finds there"
            return Snapshot(directory=directory, git=None, patch=b"", code=None, launcher=own, notes=(note,))
        return _copy_repository(git, directory, output_dir, secrets)
    except GitError as error:
        raise ConfigError(
            [f"`snapshot` (true) needs git: {error} HINT: repair that, or set `snapshot=false`."]
        ) from error


def _copy_repository(git: GitState, directory: Path, output_dir: Path, secrets: Mapping[str, str]) -> Snapshot:
    found = scan(git.root, output_dir, secrets)
    digest, tree = store(git.root, found.entries, output_dir)
    patch = changes(git, sorted(found.hidden))
    notes = []
    if found.hidden:
        some = ", ".join(sorted(found.hidden)[:3]) + (", ..." if len(found.hidden) > 3 else "")
        notes.append(f"files with secrets are linked, not copied: {some}")
    if any(value.encode() in patch for value in secrets.values()):
        # In a line that was removed: the file itself holds it no more.
        patch = b""
        notes.append("the patch holds a secret and is not kept")
    home = launcher_home()
    inside = home is not None and home.is_relative_to(git.root) and not is_below(_name(home, git.root), found.linked)
    return Snapshot(
        directory=directory,
        git=git,
        patch=patch,
        code=Tree(root=str(git.root), digest=digest, tree=str(tree)),
        launcher=None if inside else _copy_launcher(output_dir),
        copied=found.copied,
        linked=found.linked,
        size=sum(entry.size for entry in found.entries),
        notes=tuple(notes),
    )


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def launcher_home() -> Path | None:
    """The directory that this package is imported from; None if that is where packages are installed."""
    home = Path(launcher.__file__).resolve().parent.parent
    return None if str(home) in sysconfig.get_paths().values() else home


def _copy_launcher(output_dir: Path) -> Tree | None:
    home = launcher_home()
    if home is None:
        return None
    digest, tree = store(home, scan_launcher(home), output_dir)
    return Tree(root=str(home), digest=digest, tree=str(tree))


def _editable_folders() -> list[str]:
    """Directories that packages are imported from without being installed there: ``pip install --editable``."""
    # The first is where the program lies, or where it was called.
    folders = [entry for entry in sys.path[1:] if Path(entry).is_dir()]
    for name, module in list(sys.modules.items()):
        if name.startswith("__editable__"):
            mapping: Mapping[str, str] = getattr(module, "MAPPING", {})
            folders += [str(Path(package).parent) for package in mapping.values()]
    return folders


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


def scan(root: Path, output_dir: Path, secrets: Mapping[str, str]) -> Scan:
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


def scan_launcher(home: Path) -> tuple[TreeEntry, ...]:
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
