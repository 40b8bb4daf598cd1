"""Two users of one machine run the launcher at the same time: nothing of theirs collides, or can be read by the other.

The users are created for the test. They run on the same nodes: one ``/tmp``, one ``/dev/shm``, one network; first
without SLURM, then as two jobs that share every node of a real one.
"""

from __future__ import annotations

import json
import os
import pwd
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from launcher.common.env import LAUNCHER_TOKEN
from launcher.common.keys import api_key, bridge_key
from tests.integration.jobs.launched import ROOT, run_dir_of
from tests.slurm_cluster.cluster import SlurmCluster
from tests.slurm_cluster.spec import missing_requirements

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1200)]

DEADLINE_S = 900
HEADERS = "/tmp/torchinductor_"
"""PyTorch precompiles its own headers there, whatever its cache directory is; nothing of a run is among them."""

MEETING_FILES = "/tmp/vllm_dist_"
"""The workers of an engine meet through such a file; vLLM removes it only if it is given the time. It is private."""

PRIVATE = ("SLURM_", "XDG_", "TMP", "TORCHINDUCTOR_", "TRITON_", "VLLM_")
"""Variables that point into what belongs to the user of the tests; PyTorch sets some of them when it compiles."""

CAPABILITY = "+dac_read_search"
"""Lets a user execute an interpreter that lies in another one's home; it lets nobody write."""


class User:
    """A user of this machine, with a home of its own."""

    def __init__(self, name: str) -> None:
        subprocess.run(["useradd", "--no-create-home", "--shell", "/bin/bash", name], check=True)
        self.name = name
        self.uid = pwd.getpwnam(name).pw_uid
        self.gid = pwd.getpwnam(name).pw_gid
        self.clear()  # an earlier user may have had the same number
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
        self._start(self.words(*options), overrides, {})

    def submit(self, cluster: SlurmCluster, *overrides: str) -> None:
        """Starts ``python -m launcher +cluster=slurm`` as this user, on the login node."""
        words = ("+cluster=slurm", "cluster.wait=true", "cluster.mem=4G", *overrides)
        self._start([*cluster.login, *self.words()], words, cluster.variables)

    def _start(self, enter: Sequence[str], overrides: Sequence[str], variables: Mapping[str, str]) -> None:
        environ = {name: value for name, value in os.environ.items() if not name.startswith(PRIVATE)}
        environ |= {"HOME": str(self.home), "USER": self.name, "LOGNAME": self.name, "PYTHONPATH": str(ROOT)}
        environ |= variables
        command = [sys.executable, "-m", "launcher", f"output_dir={self.home / 'runs'}", "snapshot=false", *overrides]
        with (self.home / "output.txt").open("wb") as output:
            self.launcher = subprocess.Popen(
                [*enter, *command],
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

    def can_open(self, other: User, enter: Sequence[str] = ()) -> list[str]:
        """What the other user has in the folders that all users share, and this one can read or write.

        Args:
            enter: words that run a command on a node.
        """
        mine = ["(", "-readable", "-o", "-writable", ")"]
        find = ["find", "/tmp", "/dev/shm", "-path", f"{HEADERS}*", "-prune", "-o", "-user", other.name]
        find += ["-not", "-type", "l", *mine, "-print"]
        done = subprocess.run([*enter, *self.words(), *find], capture_output=True, text=True, check=False)
        return done.stdout.splitlines()

    def remove(self) -> None:
        if self.launcher is not None and self.launcher.poll() is None:
            self.launcher.terminate()
            self.launcher.wait(60)
        self.clear()
        # Last: another user may get the same number then.
        subprocess.run(["userdel", self.name], check=True)

    def clear(self) -> None:
        """Removes what the user owns in ``/tmp``."""
        find = ["find", "/tmp", "-maxdepth", "1", "-user", self.name, "-exec", "rm", "-r", "{}", "+"]
        subprocess.run(find, check=False, capture_output=True)


def owned_by(user: User, enter: Sequence[str] = (), *options: str) -> list[str]:
    """Paths of a user in the folders that all users of a node share."""
    find = ["find", "/tmp", "/dev/shm", *options, "-user", user.name]
    return subprocess.run([*enter, *find], capture_output=True, text=True, check=False).stdout.splitlines()


def left_behind(user: User, enter: Sequence[str] = ()) -> list[str]:
    """What a user still owns there, without what is kept for the next run."""
    kept = (str(user.home), f"/tmp/launcher-caches-{user.uid}", f"{HEADERS}{user.name}", MEETING_FILES)
    return [path for path in owned_by(user, enter) if not path.startswith(kept)]


@pytest.fixture
def users() -> Iterator[tuple[User, User]]:
    if os.geteuid() != 0 and not os.environ.get("CI"):
        pytest.skip("only root can create users")
    made: list[User] = []
    try:
        # Names of their own: these tests may run beside another copy of themselves.
        mark = secrets.token_hex(4)
        made.extend(User(f"launcher-{mark}-{letter}") for letter in "ab")
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
    owned.update(owned_by(first, (), "-maxdepth", "1"))
    ports = [{int(event["url"].rpartition(":")[2]) for event in user.events("engine_ready")} for user in users]
    for user in users:
        assert user.launcher is not None
        assert user.launcher.wait(DEADLINE_S) == 0, user.output
        checks = user.events("check")
        assert [check["ok"] for check in checks] == [True, True], user.output
    assert any(path.startswith("/tmp/launcher-caches-") for path in owned), owned
    assert not seen, sorted(seen)
    assert ports[0]
    assert not ports[0] & ports[1]
    for user in users:
        assert not left_behind(user)


OPEN_PATH = """
# Usage: HIDDEN KEEP PATH... Ordinary users can read the paths, all below HIDDEN, which only root can enter.
set -e
hidden=$1 keep=$2; shift 2
mount -t tmpfs tmpfs "$keep"
for ((i = 1; i <= $#; i++)); do mkdir "$keep/$i"; mount --bind "${!i}" "$keep/$i"; done
mount -t tmpfs -o mode=755 tmpfs "$hidden"
for ((i = 1; i <= $#; i++)); do mkdir -p "${!i}"; mount --bind "$keep/$i" "${!i}"; done
umount --recursive "$keep"
"""


def let_users_execute(enter: Sequence[str], keep: Path) -> None:
    """Makes the interpreter and this code readable in a mount namespace, where they lie below a private directory."""
    below: dict[Path, list[Path]] = {}
    for path in {Path(sys.base_prefix).resolve(), Path(sys.prefix).resolve(), ROOT}:
        hidden = [folder for folder in reversed(path.parents) if not folder.stat().st_mode & 0o001]
        if hidden:
            below.setdefault(hidden[0], []).append(path)
    for folder, paths in below.items():
        # A path inside another one is there with it.
        outer = [str(path) for path in sorted(paths) if not any(other in path.parents for other in paths)]
        subprocess.run([*enter, "bash", "-c", OPEN_PATH, "open", str(folder), str(keep), *outer], check=True)


def enter_node(cluster: SlurmCluster, name: str) -> list[str]:
    """Words that run a command where a node's files are."""
    assert cluster.directory is not None
    return ["nsenter", "--target", (cluster.directory / "nodes" / name).read_text(), "--mount", "--"]


@pytest.fixture
def shared_nodes(tmp_path: Path) -> Iterator[SlurmCluster]:
    """Two nodes on which every user of this machine can run Python."""
    cluster = SlurmCluster("node[0-1]")
    if not os.environ.get("CI") and (missing := missing_requirements(cluster.spec)):
        pytest.skip("; ".join(missing))
    with cluster:
        for name in ("login", *cluster.spec.node_names):
            let_users_execute(enter_node(cluster, name), tmp_path)
        yield cluster
        cluster.cancel_all()


def keys_of(cluster: SlurmCluster, user: User) -> set[str]:
    """Every secret of a user's run, out of the environment of its processes."""
    processes = [process for process in cluster.node_processes() if Path(f"/proc/{process.pid}").exists()]
    mine = [process.environment for process in processes if process.environment.get("USER") == user.name]
    tokens = {environ[LAUNCHER_TOKEN] for environ in mine if LAUNCHER_TOKEN in environ}
    return {key for token in tokens for key in (token, api_key(token), bridge_key(token))}


def shown_keys(cluster: SlurmCluster, user: User, keys: set[str]) -> list[str]:
    """Where others could read a key: in a command line, or in a file below the home, should that be opened to all."""
    lines = [process.command for process in cluster.node_processes()]
    found = [line for line in lines if any(key in line for key in keys)]
    for path in user.home.rglob("*"):
        if path.is_file() and path.stat().st_mode & 0o004:
            content = path.read_bytes()
            found += [str(path)] * any(key.encode() in content for key in keys)
    return found


@pytest.mark.slurm
def test_two_users_share_the_nodes_of_a_real_slurm(
    users: tuple[User, User], shared_nodes: SlurmCluster, model: Path
) -> None:
    first, second = users
    nodes = [enter_node(shared_nodes, name) for name in shared_nodes.spec.node_names]
    deadline = time.monotonic() + DEADLINE_S
    seen: set[str] = set()
    owned: set[str] = set()

    def look() -> None:
        for enter in nodes:
            seen.update([*first.can_open(second, enter), *second.can_open(first, enter)])
            for user in users:
                owned.update(owned_by(user, enter, "-maxdepth", "1"))

    for user in users:
        # Both configurations are the same, ports included.
        shutil.copytree(model, user.home / "model")
        subprocess.run(["chown", "-R", f"{user.uid}:{user.gid}", str(user.home)], check=True)
        program = ["python", "-m", "tests.integration.jobs.ask_engines", str(user.home / "answers")]
        command = f"trainer.command={json.dumps([*program, str(user.home / 'others')])}"
        user.submit(shared_nodes, f"model.path={user.home / 'model'}", "inference.enforce_eager=true", command)
    while not all(user.events("engine_ready") for user in users):
        for user in users:
            assert user.launcher is not None
            assert user.launcher.poll() is None and time.monotonic() < deadline, user.output
        look()
        time.sleep(5)
    look()
    urls = [[str(event["url"]) for event in user.events("engine_ready")] for user in users]
    keys = [keys_of(shared_nodes, user) for user in users]
    shown = [shown_keys(shared_nodes, user, mine) for user, mine in zip(users, keys, strict=True)]
    # Only now both trainers go on, so that neither job is over before the other is there.
    for user, others in zip(users, reversed(urls), strict=True):
        draft = user.home / "draft"
        draft.write_text("\n".join(others))
        draft.chmod(0o644)
        draft.rename(user.home / "others")
    for user in users:
        assert user.launcher is not None
        assert user.launcher.wait(DEADLINE_S) == 0, user.output
    places = [sorted((event["node_rank"], event["hostname"]) for event in user.events("node_up")) for user in users]
    assert places[0] == places[1] == [(0, "node0"), (1, "node1")]
    assert not {url.rpartition(":")[2] for url in urls[0]} & {url.rpartition(":")[2] for url in urls[1]}
    # Each has keys of its own, which open its own engine only, and shows none.
    for user, mine, others in zip(users, urls, reversed(urls), strict=True):
        answers = json.loads((user.home / "answers").read_text())
        assert {answer["url"]: (answer["mine"], answer["wrong"]) for answer in answers} == {
            **dict.fromkeys(mine, (200, 401)),
            **dict.fromkeys(others, (401, 401)),
        }
    assert all(keys)
    assert not keys[0] & keys[1]
    assert shown == [[], []]
    assert all(f"/tmp/launcher-caches-{user.uid}" in owned for user in users), owned
    assert not seen, sorted(seen)
    shared_nodes.wait_empty()
    for user in users:
        assert not [path for enter in nodes for path in left_behind(user, enter)]
