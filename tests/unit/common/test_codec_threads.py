"""Threads may read the same type at the same time, the first time too. Run as a program, this file does that."""

from __future__ import annotations

import subprocess
import sys
import threading
from dataclasses import make_dataclass

import pytest

from launcher.common.codec import from_builtins, from_json

THREADS, TYPES = 8, 300


@pytest.mark.slow
def test_many_threads_read_a_new_type_at_once() -> None:
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "read\n", "")


def main() -> None:
    sys.setswitchinterval(1e-6)
    barrier = threading.Barrier(THREADS)
    kinds = []
    for index in range(TYPES):
        inner = make_dataclass(f"Inner{index}", [(f"a{i}", int) for i in range(20)])
        kinds.append(make_dataclass(f"Outer{index}", [("inner", inner), *((f"b{i}", str, "") for i in range(20))]))
    data = {"inner": {f"a{i}": i for i in range(20)}}
    text = '{"inner":{' + ",".join(f'"a{i}":{i}' for i in range(20)) + "}}"

    def read(number: int) -> None:
        for kind in kinds:
            barrier.wait()
            found = from_json(text, kind) if number % 2 else from_builtins(data, kind)
            assert found.inner.a19 == 19

    threads = [threading.Thread(target=read, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print("read")


if __name__ == "__main__":
    main()
