"""How node 0 tells the job script, and the nodes that wait for it, how the run ended; only where a script asks."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from launcher.common.env import LAUNCHER_EXIT_FILE


def answer_for_the_run(code: int) -> None:
    """Called by node 0 as the last thing it does: from now on the job script knows the run's exit code.

    On a full disk it cannot be told; then the job script takes what ``srun`` ends with.
    """
    if name := os.environ.get(LAUNCHER_EXIT_FILE):
        path = Path(name)
        draft = path.with_name(f"{path.name}.{os.getpid()}")
        with contextlib.suppress(OSError):
            draft.write_text(f"{code}\n", encoding="utf-8")
            draft.replace(path)


def node_0_has_ended() -> bool:
    """Whether node 0 has given its answer."""
    name = os.environ.get(LAUNCHER_EXIT_FILE)
    return name is not None and Path(name).exists()
