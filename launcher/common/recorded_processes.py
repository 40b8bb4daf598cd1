"""Processes of this machine as other processes left their names: a pid counts only with the time of its start."""

from __future__ import annotations

import os
import signal
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """One process, for good: pids are used again, a pid with its start is not."""

    pid: int
    start: str
    """See :func:`start_of`."""

    @property
    def is_alive(self) -> bool:
        """Whether it runs; a zombie does not."""
        return start_of(self.pid) == self.start

    def send(self, signum: signal.Signals) -> bool:
        """Signals it; False if it has ended. Another process that got its pid meanwhile is never hit."""
        try:
            handle = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return False
        try:
            # The handle holds on to one process, so that what is compared here is what gets the signal.
            if not self.is_alive:
                return False
            signal.pidfd_send_signal(handle, signum)
        except ProcessLookupError:
            return False
        finally:
            os.close(handle)
        return True


def start_of(pid: int) -> str | None:
    """When a process of this machine started: the boot, and clock ticks since then; None if there is none."""
    try:
        # The command's name is in parentheses and may itself hold any character, so count from the last one.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace", encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else f"{BOOT_ID.read_text(encoding='utf-8').strip()}:{fields[19]}"


def living(identities: Collection[Identity]) -> list[Identity]:
    """Those that still run."""
    return [identity for identity in identities if identity.is_alive]
