"""Snapshots of real git repositories: what is copied, what is linked, and what a run sees of it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import launcher
from launcher.cli import main
from launcher.common.errors import ConfigError
from launcher.config import compose, load_run_config
from launcher.layout import plan
from launcher.snapshot import store
from launcher.snapshot.create import Snapshot, create_snapshot
from launcher.snapshot.record import CODE, GIT, PATCH, code_location, read_record
from launcher.snapshot.resolve_paths import resolve_command_paths, resolve_paths
from launcher.snapshot.store import STORE, prune
from launcher.submit.run_dir import create
from tests.unit.repository import Repository

pytestmark = pytest.mark.slow

FILES = {
    ".gitignore": "data/\n*.so\n.venv/\n__pycache__/\n",
    "train.py": "from package import value\nprint(value)\n",
    "package/__init__.py": "value = 'committed'\n",
    "scripts/run.sh!": "#!/bin/sh\necho hello\n",
    "gone.py": "",
    "outputs/.gitkeep": "",
}


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "project", FILES)


def names(snapshot: Snapshot) -> set[str]:
    assert snapshot.code is not None
    top = Path(snapshot.code.tree)
    return {str(path.relative_to(top)) for path in top.rglob("*") if path.is_symlink() or not path.is_dir()}


def run_of(snapshot: Snapshot, output_dir: Path) -> Path:
    config = compose([f"output_dir={output_dir}"])
    return create(config, plan(config), snapshot)


def test_it_holds_the_working_tree_as_it_is(repository: Repository, tmp_path: Path) -> None:
    repository.write({"train.py": "changed\n", "new.py": "untracked\n", "data/large.bin": "x", "package/_c.so": "x"})
    (repository.path / "gone.py").unlink()
    (repository.path / "link.py").symlink_to("train.py")
    (repository.path / "absolute.py").symlink_to(repository.path / "package" / "__init__.py")
    (repository.path / "outside").symlink_to("../elsewhere")

    snapshot = create_snapshot(repository.path, tmp_path / "runs", {})

    assert snapshot.code is not None
    top = Path(snapshot.code.tree)
    assert top.parent.parent == tmp_path / "runs" / ".snapshots"
    assert names(snapshot) == {
        *(".gitignore", "train.py", "new.py", "package/__init__.py", "scripts/run.sh"),
        *("link.py", "absolute.py", "outside", "data", "package/_c.so", "outputs"),
    }
    assert (top / "train.py").read_text() == "changed\n"
    assert (top / "train.py").stat().st_mode & 0o777 == 0o444
    assert (top / "scripts/run.sh").stat().st_mode & 0o777 == 0o555
    assert (top / "link.py").readlink() == Path("train.py")
    # From anywhere: a link inside leads inside, one that leads out leads to the same place as before.
    assert (top / "absolute.py").readlink() == Path("package/__init__.py")
    assert (top / "outside").readlink() == tmp_path / "elsewhere"
    # What git ignores, and directories that are there for results, are the original ones.
    for name in ("data", "package/_c.so", "outputs"):
        assert (top / name).readlink() == repository.path / name


def test_its_git_state_is_readable_in_the_run_directory(repository: Repository, tmp_path: Path) -> None:
    commit = repository.git("rev-parse", "HEAD").strip()
    repository.write({"train.py": "changed\n"})
    run_dir = run_of(create_snapshot(repository.path, tmp_path / "runs", {}), tmp_path / "runs")

    assert json.loads((run_dir / GIT).read_text()) == {
        "root": str(repository.path), "commit": commit, "branch": "main", "is_changed": True,
    }  # fmt: skip
    repository.git("checkout", "--quiet", "--", ".")
    repository.git("apply", str(run_dir / PATCH))
    assert (repository.path / "train.py").read_text() == "changed\n"


def test_a_run_sees_what_was_there_at_submission(repository: Repository, tmp_path: Path) -> None:
    repository.write({"data/value": "data", "lib/helper.py": "name = 'old helper'\n"})
    here = repository.path / "scripts"
    (here / "main.py").write_text(
        "import sys; from pathlib import Path; from package import value; import helper\n"
        "Path('written').write_text(''); print(value, helper.name, Path('../data/value').read_text(), sys.argv[1:])\n"
    )
    os.environ["PYTHONPATH"] = os.pathsep.join([str(repository.path), str(repository.path / "lib"), "/elsewhere"])
    try:
        run_dir = run_of(create_snapshot(here, tmp_path / "runs", {}), tmp_path / "runs")
    finally:
        del os.environ["PYTHONPATH"]
    repository.write({"package/__init__.py": "value = 'edited'\n", "lib/helper.py": "", "scripts/main.py": ""})

    place = code_location(run_dir)
    assert place is not None
    assert place.directory == run_dir / CODE / "scripts"
    assert place.python_path.endswith("/elsewhere")
    for program in (["main.py"], ["-m", "main"]):
        done = subprocess.run(
            [sys.executable, *program, "x"],
            cwd=place.directory,
            env=place.environment(os.environ),
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout == "committed old helper data ['x']\n"
    # A file that a program writes is of the run, and neither in the snapshot nor in the repository.
    assert (run_dir / CODE / "scripts" / "written").exists()
    record = read_record(run_dir)
    assert record is not None and record.code is not None
    assert not (Path(record.code.tree) / "scripts" / "written").exists()
    assert not (here / "written").exists()


def test_an_output_directory_behind_a_link_works(repository: Repository, tmp_path: Path) -> None:
    (tmp_path / "some" / "where" / "deep").mkdir(parents=True)
    (tmp_path / "runs").symlink_to(tmp_path / "some" / "where" / "deep")
    run_dir = run_of(create_snapshot(repository.path, tmp_path / "runs", {}), tmp_path / "runs")
    assert (run_dir / CODE / "train.py").read_text() == FILES["train.py"]


def test_a_draft_of_another_submission_that_is_gone_in_a_moment_is_no_problem(
    repository: Repository, tmp_path: Path
) -> None:
    store = tmp_path / "runs" / ".snapshots"
    store.mkdir(parents=True)
    # It is listed, and when it is looked at it is not there.
    (store / ".draft-0123456789ab").symlink_to("nowhere")
    assert create_snapshot(repository.path, tmp_path / "runs", {}).code is not None


def test_runs_with_the_same_code_share_one_copy(repository: Repository, tmp_path: Path) -> None:
    found: list[Snapshot] = []
    threads = [
        threading.Thread(target=lambda: found.append(create_snapshot(repository.path, tmp_path / "runs", {})))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (digest,) = {snapshot.code.digest for snapshot in found if snapshot.code is not None}
    assert len(found) == len(threads)
    repository.write({"package/__init__.py": "value = 'edited'\n"})
    edited = create_snapshot(repository.path, tmp_path / "runs", {}).code
    assert edited is not None
    # The launcher's checkout is one, too; no draft is left.
    own = found[0].launcher
    assert own is not None
    kept = {path.name for path in (tmp_path / "runs" / ".snapshots").iterdir()}
    assert kept == {digest, edited.digest, own.digest}
    assert len(kept) == 3


def test_a_snapshot_that_no_run_uses_is_pruned_a_day_later(repository: Repository, tmp_path: Path) -> None:
    output_dir = tmp_path / "runs"
    used, unused, new = [], [], []
    for number, which in enumerate((used, unused, new)):
        (repository.path / "train.py").write_text(f"print({number})\n")
        snapshot = create_snapshot(repository.path, output_dir, {})
        assert snapshot.code is not None and snapshot.launcher is not None
        which += [snapshot.code.digest, run_of(snapshot, output_dir), snapshot.launcher.digest]
    for path in (output_dir / STORE).iterdir():
        if path.name != new[0]:
            os.utime(path, (0, 0))
    for _, run, _ in (unused, new):
        shutil.rmtree(run)
    assert main(["runs", "--prune", "--output-dir", str(output_dir)]) == 0
    assert sorted(path.name for path in (output_dir / STORE).iterdir()) == sorted({used[0], new[0], new[2]})
    assert (used[1] / CODE / "train.py").read_text() == "print(0)\n"
    # A submission with the code of then makes it new again.
    (repository.path / "train.py").write_text("print(0)\n")
    create_snapshot(repository.path, output_dir, {})
    shutil.rmtree(used[1])
    assert used[0] in prune(output_dir).kept


def test_the_launcher_is_taken_along_unless_it_is_in_the_repository(repository: Repository, tmp_path: Path) -> None:
    own = create_snapshot(repository.path, tmp_path / "runs", {}).launcher
    assert own is not None
    assert (Path(own.tree) / "launcher" / "node" / "shim.py").exists()
    assert (Path(own.tree) / "conf" / "config.yaml").exists()
    assert not list(Path(own.tree).rglob("*.pyc"))
    run_dir = run_of(create_snapshot(repository.path, tmp_path / "runs", {}), tmp_path / "runs")
    place = code_location(run_dir)
    assert place is not None
    assert place.python_path.split(os.pathsep)[0] == own.tree

    home = Path(launcher.__file__).parent.parent
    inside = create_snapshot(home, tmp_path / "runs", {})
    if inside.git is not None:
        assert inside.launcher is None
        place = code_location(run_of(inside, tmp_path / "runs"))
        assert place is not None
        assert (Path(place.python_path.split(os.pathsep)[0]) / "launcher" / "node").is_dir()
        assert place.directory.name == CODE


def test_submodules_and_repositories_inside_are_part_of_it(repository: Repository, tmp_path: Path) -> None:
    other = Repository(tmp_path / "other", {"lib.py": "first\n", ".gitignore": "*.bin\n"})
    repository.git("submodule", "--quiet", "add", str(other.path), "vendor/other")
    repository.git("submodule", "--quiet", "add", "--name", "bare", str(other.path), "vendor/unused")
    repository.commit("submodules")
    repository.git("submodule", "--quiet", "deinit", "--force", "vendor/unused")
    repository.write({"vendor/other/lib.py": "changed\n", "vendor/other/new.py": "", "vendor/other/x.bin": ""})
    Repository(repository.path / "clone", {"inner.py": ""})

    snapshot = create_snapshot(repository.path, tmp_path / "runs", {})

    assert {"vendor/other/lib.py", "vendor/other/new.py", "vendor/other/x.bin", "clone/inner.py"} <= names(snapshot)
    assert not any(name.startswith("vendor/unused") or ".git/" in name for name in names(snapshot))
    assert snapshot.code is not None
    assert (Path(snapshot.code.tree) / "vendor/other/lib.py").read_text() == "changed\n"
    assert b"+changed" in snapshot.patch


@pytest.mark.parametrize("ignored", [True, False])
def test_the_output_directory_is_never_part_of_it(repository: Repository, tmp_path: Path, ignored: bool) -> None:
    output_dir = repository.path / "my runs*"
    if ignored:
        repository.write({".gitignore": "my runs*/\n"})
    first = create_snapshot(repository.path, output_dir, {})
    run_of(first, output_dir)
    second = create_snapshot(repository.path, output_dir, {})
    assert not any(name.startswith("my runs") for name in names(second))
    assert first.code == second.code


def test_before_the_first_commit_and_on_a_detached_head(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    subprocess.run(["git", "init", "--quiet", str(tmp_path / "new")], check=True)
    (tmp_path / "new" / "train.py").write_text("x")
    snapshot = create_snapshot(tmp_path / "new", tmp_path / "runs", {})
    assert snapshot.git is not None
    assert (snapshot.git.commit, names(snapshot)) == (None, {"train.py"})
    assert snapshot.text().startswith("no commit")

    detached = Repository(tmp_path / "detached", {"train.py": "x"})
    detached.git("checkout", "--quiet", "--detach")
    snapshot = create_snapshot(detached.path, tmp_path / "runs", {})
    assert snapshot.git is not None and snapshot.git.commit is not None
    assert snapshot.git.branch is None
    assert snapshot.text().startswith(f"commit {snapshot.git.commit[:10]}: 1 files")


@pytest.mark.parametrize("kind", ["none", "ignored"])
def test_without_a_repository_only_the_launcher_is_kept(tmp_path: Path, kind: str) -> None:
    directory = tmp_path / "plain"
    if kind == "ignored":
        directory = Repository(tmp_path / "home", {".gitignore": "*\n"}).path / "plain"
    directory.mkdir()
    (directory / "train.py").write_text("x")
    snapshot = create_snapshot(directory, tmp_path / "runs", {})
    assert snapshot.code is None
    assert snapshot.launcher is not None
    assert snapshot.text() == (
        f"{directory} is in no git repository: only the launcher is snapshotted, and the job runs the files that it"
        " finds there"
    )
    place = code_location(run_of(snapshot, tmp_path / "runs"))
    assert place is not None
    assert place.directory == directory


def test_a_repository_that_git_cannot_read_is_a_problem(repository: Repository, tmp_path: Path) -> None:
    (repository.path / ".git" / "HEAD").write_text("nonsense")
    with pytest.raises(ConfigError, match=r"`snapshot` \(true\) needs git: .* HINT: repair that, or set `snapshot=fa"):
        create_snapshot(repository.path, tmp_path / "runs", {})


def test_what_is_too_large_is_named(repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository.write({"weights.bin": "x" * 3000, "data/ignored.bin": "x" * 9000})
    monkeypatch.setattr(store, "MAX_BYTES", 2000)
    with pytest.raises(ConfigError, match=r"would copy 0\.0 MiB, more than .*largest: weights\.bin \(.*\.gitignore"):
        create_snapshot(repository.path, tmp_path / "runs", {})
    monkeypatch.setattr(store, "MAX_BYTES", 10**9)
    monkeypatch.setattr(store, "MAX_FILES", 4)
    with pytest.raises(ConfigError, match=r"would copy \d+ files, more than 4, .*most in: \./ \(\d\)"):
        create_snapshot(repository.path, tmp_path / "runs", {})
    assert not (tmp_path / "runs").exists()


def test_paths_mean_what_they_meant_at_submission(repository: Repository, tmp_path: Path) -> None:
    repository.write({"data/train.jsonl": "x", "my/config.json": "x", "runs/old/weights": "x"})
    (tmp_path / "shared").mkdir()
    here, runs = repository.path / "scripts", repository.path / "runs"
    snapshot = create_snapshot(here, runs, {})
    command = [
        *("./run.sh", str(here / "run.sh"), "--config=../my/config.json", str(repository.path / "my/config.json")),
        *("../data/train.jsonl", "--init=../runs/old/weights", "../../shared", "../missing", "runs", "a=b/c"),
    ]
    config = compose(["output_dir=runs", "model.path=../data"])
    config.trainer.command = command
    frozen = resolve_command_paths(resolve_paths(config, here), snapshot)

    assert Path(frozen.output_dir) == here / "runs"
    assert frozen.model.path is not None
    assert Path(frozen.model.path).resolve() == repository.path / "data"
    assert frozen.trainer.command == [
        *("./run.sh", "./run.sh", "--config=../my/config.json", "../my/config.json"),
        *("../data/train.jsonl", f"--init={runs}/old/weights", str(tmp_path / "shared"), "../missing", "runs", "a=b/c"),
    ]
    run_dir = create(frozen, plan(frozen), snapshot)
    assert load_run_config(run_dir) == frozen
