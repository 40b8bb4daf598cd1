"""One ``python -m launcher ui`` on a free port."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

ROOT = Path(__file__).parents[3]


class Served:
    """A page that is served while a ``with`` block lasts."""

    def __init__(self, directory: Path, *options: str) -> None:
        self._command = [sys.executable, "-m", "launcher", "ui", str(directory), "--port", "0", *options]

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        found = re.search(r"http://[^:]+:(\d+)/(\?token=\S+)?", line)
        assert found is not None, line + self._ended()
        self.url = found.group()
        self.port = int(found.group(1))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.send_signal(signal.SIGINT)
        complaints = self._ended()
        if kind is None:
            assert (self._process.returncode, complaints) == (0, "")

    def _ended(self) -> str:
        try:
            _, complaints = self._process.communicate(timeout=30)
        finally:
            self._process.kill()
        return complaints
