"""A program at a terminal that a test types on."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

DEADLINE_S = 60.0
_ESCAPES = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\\\)|[()].|[=>78])|[\r\x07\x0e\x0f]")


class Terminal:
    """Runs a program in ``folder``, which is also the first one that it looks for programs in."""

    def __init__(self, command: Sequence[str], folder: Path) -> None:
        self._shown = ""
        self._end, end = pty.openpty()
        environ = {"PATH": f"{folder}:/usr/bin:/bin", "HOME": str(folder), "TERM": "dumb", "LC_ALL": "C.UTF-8"}
        self._process = subprocess.Popen(
            # The terminal is to be its own: a shell without one does not talk to people.
            ["setsid", "--ctty", *command],
            stdin=end,
            stdout=end,
            stderr=end,
            cwd=folder,
            env=environ,
        )
        os.close(end)

    def __enter__(self) -> Self:
        """Nothing to do."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Ends the program."""
        self._process.kill()
        self._process.wait(DEADLINE_S)
        os.close(self._end)

    def type(self, keys: str) -> None:
        """As a person does; the program may read it later."""
        os.write(self._end, keys.encode())

    def wait_for(self, text: str) -> None:
        """Returns as soon as ``text`` was shown.

        Raises:
            AssertionError: it was not, until the deadline.
        """
        deadline = time.monotonic() + DEADLINE_S
        while text not in _ESCAPES.sub("", self._shown):
            ready, _, _ = select.select([self._end], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"{text!r} was not shown within {DEADLINE_S:g} s:\n{self._shown}"
            try:
                self._shown += os.read(self._end, 65536).decode(errors="replace")
            except OSError as error:
                raise AssertionError(f"the program ended before {text!r} was shown:\n{self._shown}") from error
