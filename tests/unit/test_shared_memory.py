"""What a process that is killed leaves in shared memory is found while it lives, and removed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from launcher.agent.proctree import descendants
from launcher.agent.shared_memory import FOLDER, SharedMemory, used

PROGRAM = """
import multiprocessing, multiprocessing.shared_memory
lock = multiprocessing.get_context("spawn").Lock()
memory = multiprocessing.shared_memory.SharedMemory(create=True, size=4096)
print(lock._semlock.name.strip("/"), memory.name.strip("/"), flush=True)
input()
"""


def test_a_semaphore_and_a_block_of_memory_of_a_killed_process_are_removed() -> None:
    watch = SharedMemory()
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        semaphore, memory = process.stdout.readline().split()
        names = {f"sem.{semaphore}", memory}
        assert used(process.pid) >= names
        watch.attribute({process.pid: [process.pid]})
        # With Python's resource tracker, which would remove them.
        for pid in [*descendants(process.pid), process.pid]:
            os.kill(pid, signal.SIGKILL)
        process.wait(20)
    assert all((FOLDER / name).exists() for name in names)
    assert watch.remove(process.pid) == sorted(names)
    assert not any((FOLDER / name).exists() for name in names)
