"""Writes into a run directory which code and which environment the run has."""

from __future__ import annotations

import json
from pathlib import Path

from launcher.snapshot.again import KeptCode
from launcher.snapshot.fingerprint import ENVIRONMENT, fingerprint
from launcher.snapshot.place import GIT, PATCH, write_record
from launcher.snapshot.take import Taken

Code = Taken | KeptCode
"""What a run runs: the code of its submission, or that of an earlier run."""


def keep(run_dir: Path, taken: Code | None) -> None:
    """Writes all of it.

    Args:
        taken: the snapshot; None with ``snapshot=false``.
    """
    (run_dir / ENVIRONMENT).write_text(json.dumps(fingerprint(), indent=1) + "\n", encoding="utf-8")
    if taken is None:
        return
    write_record(run_dir, taken.record(run_dir))
    if taken.git is not None:
        git = {"root": str(taken.git.root), "commit": taken.git.commit, "branch": taken.git.branch}
        (run_dir / GIT).write_text(
            json.dumps({**git, "is_changed": bool(taken.patch)}, indent=1) + "\n", encoding="utf-8"
        )
    if taken.patch:
        (run_dir / PATCH).write_bytes(taken.patch)
