"""Two users of one machine run the launcher at the same time: nothing of theirs collides, or can be read by the other.

The users are created for the test. They run on the same node: one machine, one ``/tmp``, one ``/dev/shm``, one network.
"""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.jobs.launched import ROOT, run_dir_of

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1200)]

DEADLINE_S = 900
NAMES = ("launcher-test-a", "launcher-test-b")
HEADERS = "/tmp/torchinductor_"
"""PyTorch precompiles its own headers there, whatever its cache directory is; nothing of a run is among them."""

CAPABILITY = "+dac_read_search"
"""Lets a user execute an interpreter that lies in another one's home; it lets nobody write."""


class User:
    """A user of this machine, with a home of its own."""

    def __init__(self, name: str) -> None:
        subprocess.run(["useradd", "--no-create-home", "--shell", "/bin/bash", name], check=True)
        self.name = name
        self.uid = pwd.getpwnam(name).pw_uid
        self.gid = pwd.getpwnam(name).pw_gid
        self.home = Path(tempfile.mkdtemp(prefix=f"{name}-"))
        os.chown(self.home, self.uid, self.gid)
        self.launcher: subprocess.Popen[bytes] | None = None

    def words(self, *options: str) -> list[str]:
        ids = [f"--reuid={self.uid}", f"--regid={self.gid}", "--clear-groups"]
        return ["setpriv", *ids, *options, "--"]

    def start(self, *overrides: str) -> None:
        """Starts ``python -m launcher`` as this user."""
        can_execute = subprocess.run([*self.words(), "test", "-x", sys.executable], check=False).returncode == 0
        options = () if can_execute else (f"--inh-caps={CAPABILITY}", f"--ambient-caps={CAPABILITY}")
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "XDG_", "TMP"))}
        environ |= {"HOME": str(self.home), "USER": self.name, "LOGNAME": self.name, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "launcher", f"output_dir={self.home / 'runs'}", "snapshot=false", *overrides]
        with (self.home / "output.txt").open("wb") as output:
            self.launcher = subprocess.Popen(
                [*self.words(*options), *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self.home,
                env=environ | {"PYTHONDONTWRITEBYTECODE": "1", "CUDA_VISIBLE_DEVICES": ""},
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        return (self.home / "output.txt").read_text()

    def events(self, name: str) -> list[dict[str, Any]]:
        if "run directory" not in self.output:
            return []
        path = run_dir_of(self.output) / "attempts" / "1" / "events.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return [event for line in lines if line.endswith("\n") and (event := json.loads(line))["event"] == name]

    def can_open(self, other: User) -> list[str]:
        """What the other user has in the folders that all users share, and this one can read or write."""
        mine = ["(", "-readable", "-o", "-writable", ")"]
        find = ["find", "/tmp", "/dev/shm", "-path", f"{HEADERS}*", "-prune", "-o", "-user", other.name]
        find += ["-not", "-type", "l", *mine, "-print"]
        done = subprocess.run([*self.words(), *find], capture_output=True, text=True, check=False)
        return done.stdout.splitlines()

    def remove(self) -> None:
        if self.launcher is not None and self.launcher.poll() is None:
            self.launcher.terminate()
            self.launcher.wait(60)
        subprocess.run(["userdel", self.name], check=True)
        shutil.rmtree(self.home, ignore_errors=True)
        for folder in (f"/tmp/launcher-caches-{self.uid}", f"{HEADERS}{self.name}"):
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def users() -> Iterator[tuple[User, User]]:
    if os.geteuid() != 0 and not os.environ.get("CI"):
        pytest.skip("only root can create users")
    made: list[User] = []
    try:
        made.extend(User(name) for name in NAMES)
        yield made[0], made[1]
    finally:
        for user in made:
            user.remove()


def test_two_users_on_one_node_neither_collide_nor_read_each_other(users: tuple[User, User], model: Path) -> None:
    for user in users:
        # Both configurations are the same, ports included.
        shutil.copytree(model, user.home / "model")
        subprocess.run(["chown", "-R", f"{user.uid}:{user.gid}", str(user.home)], check=True)
        user.start(f"model.path={user.home / 'model'}", "trainer.steps=3")
    first, second = users
    deadline = time.monotonic() + DEADLINE_S
    seen: set[str] = set()
    owned: set[str] = set()
    for user in users:
        while not user.events("published"):
            assert user.launcher is not None
            assert user.launcher.poll() is None and time.monotonic() < deadline, user.output
            seen.update([*first.can_open(second), *second.can_open(first)])
            time.sleep(0.5)
    # Weights and sockets are in use now.
    seen.update([*first.can_open(second), *second.can_open(first)])
    shared = subprocess.run(
        ["find", "/tmp", "/dev/shm", "-maxdepth", "1", "-user", first.name], capture_output=True, text=True, check=False
    )
    owned.update(shared.stdout.splitlines())
    ports = [{int(event["url"].rpartition(":")[2]) for event in user.events("engine_ready")} for user in users]
    for user in users:
        assert user.launcher is not None
        assert user.launcher.wait(DEADLINE_S) == 0, user.output
        (check,) = user.events("check")
        assert check["ok"], user.output
    assert any(path.startswith("/tmp/launcher-caches-") for path in owned), owned
    assert not seen, sorted(seen)
    assert ports[0]
    assert not ports[0] & ports[1]
    for user in users:
        left = subprocess.run(
            ["find", "/tmp", "/dev/shm", "-user", user.name], capture_output=True, text=True, check=False
        )
        ours = (str(user.home), f"/tmp/launcher-caches-{user.uid}", f"{HEADERS}{user.name}")
        assert not [path for path in left.stdout.splitlines() if not path.startswith(ours)]
