"""What a process that is killed leaves in shared memory is found while it lives, and removed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from launcher.common.procfs import descendants
from launcher.node.shared_memory import FOLDER, SharedMemory, used
from launcher.node.stale_resources import inodes, record, sweep

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


HOLDER = """
import os, sys
from multiprocessing import resource_tracker, shared_memory
from pathlib import Path
from launcher.node.stale_resources import inodes, make_scratch, record
memory = shared_memory.SharedMemory(create=True, size=4096)
resource_tracker.unregister(memory._name, "shared_memory")
scratch = make_scratch()
record(scratch, inodes({memory.name}))
print(memory.name, scratch, flush=True)
input()
"""


def test_what_a_killed_guard_left_is_removed_by_the_next_one(tmp_path: Path) -> None:
    environ = {**os.environ, "TMPDIR": str(tmp_path)}
    words = [sys.executable, "-c", HOLDER]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ) as guard:
        assert guard.stdout is not None
        name, scratch = guard.stdout.readline().split()
        assert Path(scratch).parent == tmp_path
        assert sweep(tmp_path) == []  # its guard is there
        guard.kill()
        guard.wait(20)
    with (FOLDER / name).open():
        assert sweep(tmp_path) == []  # somebody uses it
    assert sweep(tmp_path) == [name]
    assert not (FOLDER / name).exists()
    assert not Path(scratch).exists()


def test_names_that_are_somebody_elses_by_now_are_left_alone(tmp_path: Path) -> None:
    shared = tmp_path / "shm"
    shared.mkdir()
    for name in ("kept", "gone"):
        (shared / name).touch()
    scratch = tmp_path / "launcher-x"
    scratch.mkdir()
    record(scratch, inodes({"kept", "gone"}, shared))
    written = json.loads((scratch / "guard.json").read_text())
    written["memory"]["kept"] += 1000  # another file has the name now
    for other, names in ({"pid": 1 << 23}, ["gone"]), ({"hostname": "elsewhere"}, []):
        scratch.mkdir(exist_ok=True)
        (scratch / "guard.json").write_text(json.dumps({**written, **other}))
        assert sweep(tmp_path, shared) == names
    assert [path.name for path in shared.iterdir()] == ["kept"]
