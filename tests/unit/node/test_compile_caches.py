"""Compile caches: made on the node's own disk, carried over by the shared one, and never in anybody's way."""

from __future__ import annotations

import os
import tarfile
import threading
import time
from pathlib import Path

import pytest

from launcher.config.schema import CompileCacheConfig
from launcher.node import cache_archive as store
from launcher.node.compile_caches import (
    COUNTED,
    SHARED,
    VARIABLES,
    CacheKeeper,
    cache_environment,
    cache_key,
    local_root,
    mark_used,
    remove_unused,
)


@pytest.fixture(autouse=True)
def nothing_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def fill(directory: Path, names: list[str], *, size: int = 10) -> None:
    for age, name in enumerate(names):
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name[:1].encode() * size)
        os.utime(path, (1e9 - age, 1e9 - age))


def listed(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path, _, _ in store.files(directory)}


def test_what_is_saved_comes_back_and_what_is_there_stays(tmp_path: Path) -> None:
    fill(tmp_path / "a", ["triton/x/k.so", "vllm/c.py", "inductor/q.lock", "inductor/tmp.123"])
    archive = tmp_path / "shared" / "trainer.tar"
    assert store.save(tmp_path / "a", archive, most_bytes=1000) == 2
    (tmp_path / "b" / "vllm").mkdir(parents=True)
    (tmp_path / "b" / "vllm" / "c.py").write_text("mine")
    assert store.seed(archive, tmp_path / "b") == 1
    assert (tmp_path / "b" / "vllm" / "c.py").read_text() == "mine"
    assert (tmp_path / "b" / "triton/x/k.so").read_bytes() == b"t" * 10
    assert listed(tmp_path / "b") == {"triton/x/k.so", "vllm/c.py"}


def test_an_archive_is_bounded_and_keeps_the_newest(tmp_path: Path) -> None:
    fill(tmp_path / "a", ["new", "middle", "old"])
    store.save(tmp_path / "a", tmp_path / "x.tar", most_bytes=25)
    store.seed(tmp_path / "x.tar", tmp_path / "b")
    assert listed(tmp_path / "b") == {"new", "middle"}


def test_runs_that_save_at_once_leave_one_whole_archive(tmp_path: Path) -> None:
    fill(tmp_path / "a", [f"f{i}" for i in range(50)], size=10_000)
    threads = [
        threading.Thread(
            target=store.save, args=(tmp_path / "a", tmp_path / "s" / "x.tar"), kwargs={"most_bytes": 1 << 30}
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [path.name for path in (tmp_path / "s").iterdir()] == ["x.tar"]
    assert store.seed(tmp_path / "s" / "x.tar", tmp_path / "b") == 50


def test_a_member_cannot_leave_the_directory(tmp_path: Path) -> None:
    (tmp_path / "evil").write_text("x")
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(tmp_path / "evil", arcname="../outside")
        tar.add(tmp_path / "evil", arcname="inside")
    assert store.seed(tmp_path / "x.tar", tmp_path / "b") == 1
    assert not (tmp_path / "outside").exists()


def test_the_draft_of_a_run_that_died_is_removed_later(tmp_path: Path) -> None:
    fill(tmp_path / "a", ["f"])
    (tmp_path / "s").mkdir()
    old, fresh = tmp_path / "s" / ".x.tar.1.tmp", tmp_path / "s" / ".x.tar.2.tmp"
    old.touch()
    fresh.touch()
    os.utime(old, (1e9, 1e9))
    store.save(tmp_path / "a", tmp_path / "s" / "x.tar", most_bytes=100)
    assert (old.exists(), fresh.exists()) == (False, True)


def test_the_key_changes_with_versions_hardware_and_place() -> None:
    facts = dict.fromkeys(COUNTED, "1")
    keys = {cache_key({**facts, name: "2"}, Path("/tmp/x")) for name in COUNTED}
    keys |= {cache_key(facts, Path("/tmp/x")), cache_key(facts, Path("/tmp/y"))}
    assert len(keys) == len(COUNTED) + 2
    assert cache_key(facts, Path("/tmp/x")) == cache_key({**facts, "hostname": "a"}, Path("/tmp/x"))


def test_a_directory_that_others_may_write_to_is_not_used(tmp_path: Path) -> None:
    root = local_root(tmp_path)
    assert root is not None
    root.chmod(0o777)
    assert local_root(tmp_path) is None
    root.rmdir()
    root.symlink_to(tmp_path)
    assert local_root(tmp_path) is None


def test_a_persons_own_choice_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", "/mine")
    found = cache_environment(tmp_path)
    assert found.keys() == VARIABLES.keys() - {"TRITON_CACHE_DIR"}
    assert found["VLLM_CACHE_ROOT"] == str(tmp_path / "vllm")


def test_caches_that_nobody_uses_are_removed(tmp_path: Path) -> None:
    for name in ("used", "unused"):
        mark_used(tmp_path / name)
    os.utime(tmp_path / "unused", (1e9, 1e9))
    remove_unused(tmp_path, now=time.time())
    assert [path.name for path in tmp_path.iterdir()] == ["used"]


def keeper(tmp_path: Path, node: str, *, is_saver: bool = True, **settings: bool) -> CacheKeeper:
    config = CompileCacheConfig(local=str(tmp_path / node), **settings)
    return CacheKeeper(config, tmp_path / "runs", "trainer", is_saver=is_saver)


def test_a_second_run_finds_what_the_first_compiled(tmp_path: Path) -> None:
    first = keeper(tmp_path, "node")
    first.start()
    place = Path(first.environment()["TRITON_CACHE_DIR"])
    fill(place, ["k/kernel.so"])
    first.close()
    (archive,) = (tmp_path / "runs" / SHARED).glob("*/trainer.tar")
    assert archive.stat().st_size > 0
    # As on a node that never ran this before.
    (place / "k/kernel.so").unlink()
    second = keeper(tmp_path, "node", is_saver=False)
    second.start()
    assert Path(second.environment()["TRITON_CACHE_DIR"]) == place
    assert (place / "k/kernel.so").read_bytes() == b"k" * 10
    second.close()


def test_a_damaged_archive_costs_nothing_but_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = keeper(tmp_path, "node")
    first.start()
    fill(Path(first.environment()["VLLM_CACHE_ROOT"]), ["x"])
    first.close()
    (archive,) = (tmp_path / "runs" / SHARED).glob("*/trainer.tar")
    archive.write_bytes(archive.read_bytes()[:700])
    second = keeper(tmp_path, "node")
    second.start()
    assert second.environment()
    second.close()
    assert "cannot be seeded" in caplog.text


def test_off_means_off(tmp_path: Path) -> None:
    off = keeper(tmp_path, "node", enabled=False)
    off.start()
    assert off.environment() == {}
    off.close()
    assert list(tmp_path.iterdir()) == []
