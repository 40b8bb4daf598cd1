"""Code that was kept once, for further runs."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from launcher.snapshot.git import GitState
from launcher.snapshot.place import CODE, GIT, PATCH, SnapshotRecord, read_record


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptCode:
    """What :func:`launcher.snapshot.keep.keep` wrote into a directory."""

    directory: Path
    kept: SnapshotRecord
    git: GitState | None
    patch: bytes
    replay_of: str | None = None
    """Name of the run that the new one is a replay of."""

    @classmethod
    def read(cls, directory: Path, replay_of: str | None = None) -> Self:
        """What ``directory`` keeps.

        Raises:
            FileNotFoundError: it keeps no code.
        """
        record = read_record(directory)
        if record is None:
            raise FileNotFoundError(f"{directory} keeps no code")
        git = json.loads((directory / GIT).read_text(encoding="utf-8")) if (directory / GIT).exists() else None
        return cls(
            directory=directory,
            kept=record,
            git=GitState(root=Path(git["root"]), commit=git["commit"], branch=git["branch"]) if git else None,
            patch=(directory / PATCH).read_bytes() if (directory / PATCH).exists() else b"",
            replay_of=replay_of,
        )

    def record(self, run_dir: Path) -> SnapshotRecord:
        """The same code as the run in ``run_dir`` uses it: in a view of its own."""
        view = os.path.normpath(self.directory / CODE)
        path = tuple(
            str(run_dir / CODE / Path(entry).relative_to(view)) if Path(entry).is_relative_to(view) else entry
            for entry in self.kept.python_path
        )
        return dataclasses.replace(self.kept, python_path=path)
