"""What a rendered script does on the batch host before its nodes start: a run directory for each job."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launcher.common.errors import AllocationError, ConfigError, LauncherError
from launcher.common.run_dir import last_job
from launcher.config import compose, load_run_config, to_yaml
from launcher.snapshot.record import code_location, read_record
from launcher.submit.new_run import new_run, render_script
from tests.unit.repository import Repository

pytestmark = pytest.mark.slow


def text(output_dir: Path, *overrides: str) -> str:
    return to_yaml(compose(["+cluster=slurm", f"output_dir={output_dir}", "name=x", "snapshot=false", *overrides]))


def environ(job_id: int, *, nodes: int = 2, restarts: int = 0) -> dict[str, str]:
    count = {"SLURM_RESTART_COUNT": str(restarts)} if restarts else {}
    return {"SLURM_JOB_ID": str(job_id), "SLURM_JOB_NUM_NODES": str(nodes), **count}


def test_each_job_has_a_run_directory_and_a_requeued_one_keeps_it(tmp_path: Path) -> None:
    first = new_run(text(tmp_path), environ(7))
    second = new_run(text(tmp_path), environ(71))
    assert first != second
    assert first.name.endswith("-job7")
    assert load_run_config(first).name == "x"
    job = last_job(first)
    assert job is not None and job["job_id"] == "7"
    assert new_run(text(tmp_path), environ(7, restarts=1)) == first
    assert len(list(tmp_path.iterdir())) == 2
    # Its first start did not get as far as here.
    assert new_run(text(tmp_path), environ(8, restarts=1)).name.endswith("-job8")


def test_the_script_and_submitits_task_lie_in_the_run(tmp_path: Path) -> None:
    (tmp_path / "slurm_script").write_text("#!/bin/bash\n")
    run_dir = new_run(text(tmp_path), environ(7), script=tmp_path / "slurm_script", with_submitit=True)
    assert (run_dir / "job.sh").read_text() == "#!/bin/bash\n"
    assert (run_dir / "submitit" / "7_submitted.pkl").is_file()


@pytest.mark.parametrize(
    ("old", "new", "error", "wanted"),
    [
        (
            "\n  nodes: 2",
            "\n  nodes: 3",
            AllocationError,
            "The job has 2 nodes, but the configuration",
        ),
        ("\n  steps: 80", "\n  steps: 0", ConfigError, "`trainer.steps` (0)"),
        ("\n  steps: 80", "\n  stepz: 80", LauncherError, "stepz"),
        ("\n  steps: 80", "\n  steps: [", LauncherError, "steps"),
    ],
)
def test_a_wrong_edit_is_one_message(tmp_path: Path, old: str, new: str, error: type[Exception], wanted: str) -> None:
    edited = text(tmp_path).replace(old, new)
    assert edited != text(tmp_path)
    with pytest.raises(error) as caught:
        new_run(edited, environ(7))
    assert wanted in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_rendered_script_runs_the_code_of_its_rendering(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = Repository(tmp_path / "project", {"train.py": "old\n"})
    monkeypatch.chdir(repository.path)
    config = compose(["+cluster=slurm", f"output_dir={tmp_path / 'runs'}", "trainer.command=[python,train.py]"])
    script = render_script(config, None, with_submitit=False)
    (code,) = (tmp_path / "runs" / ".rendered").iterdir()
    assert f"--code {code}" in script
    assert f"cd {code}/code\n" in script
    repository.write({"train.py": "new\n"})

    run_dir = new_run(to_yaml(config), environ(7), code=code)

    place, record = code_location(run_dir), read_record(run_dir)
    assert place is not None and record is not None
    assert place.directory == run_dir / "code"
    assert (place.directory / "train.py").read_text() == "old\n"
    assert str(code) not in place.python_path
    assert json.loads((run_dir / "git.json").read_text())["root"] == str(repository.path)
