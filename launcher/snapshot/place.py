"""Where a run's processes run: in a view of its code of its own, whose files are those of the shared snapshot."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

SNAPSHOT = "snapshot.json"
"""Of a run: which code it runs."""

GIT = "git.json"
"""Of a run: commit and branch of the repository that it was submitted from."""

PATCH = "changes.patch"
"""Of a run: tracked changes since that commit, for ``git apply``."""

RENDERED = ".rendered"
"""Below ``output_dir``: the code that rendered scripts run, one directory for each script."""

CODE = "code"
"""Of a run: the directory that stands for the repository's top."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """A directory that was copied, and its copy."""

    root: str
    """The original."""

    digest: str
    tree: str
    """The copy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotRecord:
    """What a run runs, as its run directory keeps it."""

    directory: str
    """Working directory of the submission."""

    folder: str
    """The same, relative to ``code.root``."""

    code: Tree | None
    """The user's repository; None where there is none, and processes then run in ``directory`` itself."""

    launcher: Tree | None
    """The launcher, if it is neither installed nor part of ``code``."""

    python_path: tuple[str, ...]
    """``PYTHONPATH`` of every process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeLocation:
    """Where to start a process of a run."""

    directory: Path
    python_path: str

    def environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        """``environ`` for a process that is started here."""
        # A shell trusts PWD where the kernel resolves links, and so would show another name for the same place.
        return {**environ, "PYTHONPATH": self.python_path, "PWD": str(self.directory)}


def write_record(run_dir: Path, record: SnapshotRecord) -> None:
    """Keeps ``record`` in the run directory, and lays out the view of its code there."""
    (run_dir / SNAPSHOT).write_text(json.dumps(asdict(record), indent=2) + "\n", encoding="utf-8")
    if record.code is not None:
        _lay_out(Path(record.code.tree), run_dir / CODE, Path(record.folder))


def read_record(run_dir: Path) -> SnapshotRecord | None:
    """What :func:`write_record` wrote; None for a run with ``snapshot=false``."""
    path = run_dir / SNAPSHOT
    if not path.exists():
        return None
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return SnapshotRecord(
        directory=data["directory"],
        folder=data["folder"],
        code=Tree(**data["code"]) if data["code"] else None,
        launcher=Tree(**data["launcher"]) if data["launcher"] else None,
        python_path=tuple(data["python_path"]),
    )


def place_of(run_dir: Path) -> CodeLocation | None:
    """Where processes of the run are to be started; None with ``snapshot=false``: where, and as, their parent is."""
    record = read_record(run_dir)
    if record is None:
        return None
    directory = Path(record.directory) if record.code is None else run_dir / CODE / record.folder
    return CodeLocation(directory=directory, python_path=os.pathsep.join(record.python_path))


def _lay_out(tree: Path, view: Path, folder: Path) -> None:
    """Makes ``view/folder`` a directory of the run's own, in which every name leads into the snapshot.

    A file that a program writes beside its own is then one of this run, and not of every run with the same code. From
    the top down to ``folder`` each directory is made; what is beside them is one link each, however large it is.
    """
    parts = folder.parts
    # ``..`` is taken from where a link really is.
    view, tree = view.parent.resolve() / view.name, tree.resolve()
    for depth in range(len(parts) + 1):
        view.mkdir()
        onward = parts[depth] if depth < len(parts) else None
        # A folder without files of its own is not in the snapshot.
        for path in tree.iterdir() if tree.is_dir() else ():
            if path.name != onward:
                (view / path.name).symlink_to(os.path.relpath(path, view))
        if onward is not None:
            view, tree = view / onward, tree / onward
