"""A run submitted again: the code of then or of now, with what is different in code and environment."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from launcher.cli import main
from launcher.cli.replay import CURRENT, SNAPSHOT, prepare
from launcher.config import compose, load_run_config
from launcher.snapshot.record import CODE, ENVIRONMENT, GIT, PATCH, code_location, read_record
from launcher.submit.run import create, snapshot_code
from launcher.submit.run_dir import _without_news, new_run_dir
from tests.unit.repository import Repository

pytestmark = pytest.mark.slow


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    repository = Repository(tmp_path / "project", {"work/train.py": "first\n", "old.py": "", ".gitignore": "runs\n"})
    repository.write({"work/train.py": "changed\n"})
    monkeypatch.chdir(repository.path / "work")
    return repository


def submitted(*overrides: str) -> Path:
    """A run that was made ready and not started."""
    config = compose(["trainer.command=[python,train.py]", "trainer.steps=3", "output_dir=../runs", *overrides])
    path = new_run_dir(config)
    create(config, path, snapshot_code(config))
    return path


@pytest.fixture
def run(repository: Repository) -> Path:
    return submitted()


def again(run: Path, *overrides: str, code: str = SNAPSHOT) -> tuple[Path, dict[str, Any]]:
    """The run made ready once more, and the differences."""
    request = prepare(run, overrides, code)
    path = new_run_dir(request.config)
    create(request.config, path, request.code)
    return path, json.loads(json.dumps(request.differences.to_json()))


def test_the_same_code_and_configuration_run_again(repository: Repository, run: Path) -> None:
    repository.write({"work/train.py": "edited\n", "work/new.py": ""})
    (repository.path / "old.py").unlink()
    new, found = again(run, "trainer.seed=7", "+trainer.options.x=1")

    changes = found["code"]
    assert changes == {"changed": ["work/train.py"], "added": ["work/new.py"], "removed": ["old.py"]}
    then, now = load_run_config(run), load_run_config(new)
    assert (now.trainer.seed, now.trainer.options["x"], now.trainer.steps) == (7, 1, 3)
    assert now.trainer.command == then.trainer.command
    assert now.output_dir == then.output_dir
    place, record, earlier = code_location(new), read_record(new), read_record(run)
    assert place is not None and record is not None and earlier is not None
    assert place.directory == new / CODE / "work"
    assert (place.directory / "train.py").read_text() == "changed\n"
    assert record.code == earlier.code
    assert json.loads((new / "submission.json").read_text())["replay_of"] == run.name
    assert (new / GIT).read_text() == (run / GIT).read_text()
    assert (new / PATCH).read_bytes() == (run / PATCH).read_bytes()


def test_todays_code_runs_on_request(repository: Repository, run: Path) -> None:
    repository.write({"work/train.py": "edited\n"})
    os.chdir(repository.path)
    new, found = again(run, code=CURRENT)

    assert found["code"]["changed"] == ["work/train.py"]
    place = code_location(new)
    assert place is not None
    assert place.directory == new / CODE / "work"
    assert (place.directory / "train.py").read_text() == "edited\n"
    assert json.loads((new / "submission.json").read_text())["replay_of"] == run.name


def test_people_are_told_what_differs(repository: Repository, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare(run, [], SNAPSHOT).differences.text() == "neither code nor environment has changed"
    assert "changed since: snapshot" in capsys.readouterr().out

    repository.write({"work/train.py": "edited\n"})
    then = json.loads((run / ENVIRONMENT).read_text())
    versions = {"python": "3.10.1", "packages": {**then["packages"], "torch": "1.0", "gone": "2.0"}}
    (run / ENVIRONMENT).write_text(json.dumps({**then, **versions}))
    shown = prepare(run, [], SNAPSHOT).differences.text() + "\n"
    assert "code differs from today's checkout in 1 file:\n  M work/train.py\n" in shown
    assert f"  python 3.10.1 -> {then['python']}\n" in shown
    assert f"  torch 1.0 -> {then['packages']['torch']}\n" in shown
    assert "  gone 2.0 -> (none)\n" in shown


def test_a_snapshot_that_was_changed_or_removed_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = read_record(run)
    assert record is not None and record.code is not None
    file = Path(record.code.tree) / "work" / "train.py"
    file.chmod(0o644)
    file.write_text("tampered")
    assert main(["replay", str(run)]) == 2
    assert "was changed after it was taken, in" in (error := capsys.readouterr().err)
    assert "M work/train.py. HINT: `--code current`" in error
    Path(record.code.tree).parent.rename(run / "elsewhere")
    assert main(["replay", str(run)]) == 2
    assert f"The snapshot of {run.name} is gone" in capsys.readouterr().err


def test_a_run_without_a_snapshot_has_todays_code_only(
    repository: Repository, capsys: pytest.CaptureFixture[str]
) -> None:
    run = submitted("snapshot=false")
    assert code_location(run) is None
    assert not (run / CODE).exists()
    assert main(["replay", str(run)]) == 2
    assert "has no snapshot of its code (`snapshot=false`)" in capsys.readouterr().err
    new, _ = again(run, code=CURRENT)
    assert (new / CODE / "work" / "train.py").read_text() == "changed\n"


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("layout=gpu", "`layout=gpu` chooses a preset, but the presets of "),
        ("trainer.seed=1,2", "`trainer.seed=1,2` has several values"),
        ("trainer.stepz=1", "did you mean `trainer.steps`?"),
        ("layout.nodes=0", "`layout.nodes` (0) is not a number from 1 up"),
        ("+trainer.env.HF_TOKEN=hf_0123456789", "`trainer.env.HF_TOKEN` is a secret"),
    ],
)
def test_a_wrong_override_is_one_message(
    run: Path, override: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = set(run.parent.iterdir())
    assert main(["replay", str(run), override]) == 2
    assert says in capsys.readouterr().err
    assert set(run.parent.iterdir()) == before


def test_a_launcher_of_then_is_told_nothing_that_it_does_not_know(run: Path) -> None:
    file = run / "config.yaml"
    file.write_text("".join(line for line in file.read_text().splitlines(True) if "lease_timeout_s" not in line))
    new, _ = again(run)
    assert "lease_timeout_s" not in (new / "config.yaml").read_text()
    new, _ = again(run, "lease_timeout_s=77")
    assert "lease_timeout_s: 77" in (new / "config.yaml").read_text()
    assert _without_news({"a": 1, "b": {"c": 1, "d": 2}}, {"b": {"c": 1}}, {"a": 1, "b": {"d": 2}}) == {"b": {"c": 1}}
