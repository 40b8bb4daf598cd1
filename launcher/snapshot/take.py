"""Takes the code of a run at its submission: the repository that one stands in, and the launcher itself."""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import launcher
from launcher.common.errors import ConfigError
from launcher.snapshot.git import GitError, GitState, changes, git_state
from launcher.snapshot.look import is_below, look, look_at_launcher
from launcher.snapshot.place import CODE, SnapshotRecord, Tree
from launcher.snapshot.tree import store


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """A snapshot that was taken."""

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
        """One line that says which code runs."""
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


def take(directory: Path, output_dir: Path, secrets: Mapping[str, str]) -> Taken:
    """Copies the code that a run submitted from ``directory`` needs, unless it is there already.

    Args:
        directory: absolute; the repository that it is in is taken as it is: commit, changes and untracked files.
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
            own = _take_launcher(output_dir)
            what = "only the launcher is snapshotted" if own else "nothing is snapshotted"
            note = f"{directory} is in no git repository: {what}, and the job runs the files that it finds there"
            return Taken(directory=directory, git=None, patch=b"", code=None, launcher=own, notes=(note,))
        return _take_repository(git, directory, output_dir, secrets)
    except GitError as error:
        raise ConfigError(
            [f"`snapshot` (true) needs git: {error} HINT: repair that, or set `snapshot=false`."]
        ) from error


def _take_repository(git: GitState, directory: Path, output_dir: Path, secrets: Mapping[str, str]) -> Taken:
    found = look(git.root, output_dir, secrets)
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
    return Taken(
        directory=directory,
        git=git,
        patch=patch,
        code=Tree(root=str(git.root), digest=digest, tree=str(tree)),
        launcher=None if inside else _take_launcher(output_dir),
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


def _take_launcher(output_dir: Path) -> Tree | None:
    home = launcher_home()
    if home is None:
        return None
    digest, tree = store(home, look_at_launcher(home), output_dir)
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
