"""What a process that is killed leaves in shared memory is found while it lives, and removed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.common.procfs import descendants
from launcher.node.stale_resources import FOLDER, SharedMemory, inodes, make_scratch, record, remove_stale, used

pytestmark = pytest.mark.slow

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


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder whose path leaves room for the names of sockets; pytest's own may be too long for that."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


def test_what_a_killed_shim_left_is_removed_by_the_next_one(short: Path) -> None:
    environ = {**os.environ, "TMPDIR": str(short)}
    words = [sys.executable, "-c", HOLDER]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ) as shim:
        assert shim.stdout is not None
        name, scratch = shim.stdout.readline().split()
        assert Path(scratch).parent == short
        assert remove_stale(short) == []  # its shim is there
        shim.kill()
        shim.wait(20)
    with (FOLDER / name).open():
        assert remove_stale(short) == []  # somebody uses it
    assert remove_stale(short) == [name]
    assert not (FOLDER / name).exists()
    assert not Path(scratch).exists()


def test_a_long_folder_for_temporary_files_is_not_used_for_sockets(
    short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = short / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    scratch = make_scratch()
    try:
        assert scratch.parent == Path("/tmp")
        assert scratch.stat().st_mode & 0o077 == 0
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(scratch / str(uuid.uuid4())))
    finally:
        shutil.rmtree(scratch)


def test_names_that_are_somebody_elses_by_now_are_left_alone(tmp_path: Path) -> None:
    shared = tmp_path / "shm"
    shared.mkdir()
    for name in ("kept", "gone"):
        (shared / name).touch()
    scratch = tmp_path / "launcher-x"
    scratch.mkdir()
    record(scratch, inodes({"kept", "gone"}, shared))
    written = json.loads((scratch / "shim.json").read_text())
    written["memory"]["kept"] += 1000  # another file has the name now
    for other, names in ({"pid": 1 << 23}, ["gone"]), ({"hostname": "elsewhere"}, []):
        scratch.mkdir(exist_ok=True)
        (scratch / "shim.json").write_text(json.dumps({**written, **other}))
        assert remove_stale(tmp_path, shared) == names
    assert [path.name for path in shared.iterdir()] == ["kept"]
