"""Secrets are told by name and by value, refused wherever they would be written, and never shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.cli import main
from launcher.config import compose
from launcher.config.secrets import is_secret, is_secret_file, unset_secrets
from launcher.snapshot.create import create_snapshot
from launcher.submit.validate import problems
from tests.unit.repository import Repository

VALUE = "hf_0123456789abcdef"


def test_they_are_told_by_their_names() -> None:
    for name in ("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "MY_SECRETS", "DB_PASSWORD", "PGPASSWORD"):
        assert is_secret(name)
    for name in ("TOKENIZERS_PARALLELISM", "HOME", "KEYBOARD", "WANDB_PROJECT"):
        assert not is_secret(name)
    assert is_secret("MY_PASS", ["MY_PASS"])
    assert is_secret("SITE_LOGIN_X", ["SITE_LOGIN_*"])
    for name in (".env", ".env.local", "server.pem", ".netrc"):
        assert is_secret_file(name)
    for name in (".env.example", "environment.py", "keys.py"):
        assert not is_secret_file(name)


@pytest.mark.parametrize(
    ("override", "path"),
    [
        (f"+cluster.env.WANDB_API_KEY={VALUE}", "cluster.env.WANDB_API_KEY"),
        (f"+trainer.env.HF_TOKEN={VALUE}", "trainer.env.HF_TOKEN"),
        (f"+inference.env={{HF_TOKEN:{VALUE}}}", "inference.env.HF_TOKEN"),
        (f"trainer.command=[python,train.py,'--wandb-api-key={VALUE}']", "trainer.command[2]"),
        (f"trainer.command=[env,'HF_TOKEN={VALUE}',python]", "trainer.command[1]"),
        (f"+cluster.env.LAUNCHER_TOKEN={VALUE}", "cluster.env.LAUNCHER_TOKEN"),
        (f"+cluster.env.VLLM_API_KEY={VALUE}", "cluster.env.VLLM_API_KEY"),
    ],
)
def test_one_in_a_configuration_is_refused_without_being_shown(
    override: str, path: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = problems(compose([override]))
    assert any(problem.startswith(f"`{path}`") for problem in found), found
    for words in ([override], ["-m", override], ["plan", override]):
        assert main(words) == 2
        shown = capsys.readouterr()
        assert VALUE not in shown.out + shown.err
        assert "HINT: leave it out" in shown.err
    # Not even Hydra's record of a sweep.
    assert not list(tmp_path.iterdir())


def test_in_the_job_script_it_is_refused_unless_it_is_fetched_there() -> None:
    for line in (f"export HF_TOKEN={VALUE}", f"HF_TOKEN='{VALUE}' true"):
        config = compose(["+cluster=slurm"])
        config.cluster.setup = [line]
        (problem,) = problems(config)
        assert problem.startswith("`cluster.setup[0]` holds the secret HF_TOKEN")
        assert VALUE not in problem
    config.cluster.setup = ["export HF_TOKEN=$(cat ~/.token)", 'export HF_TOKEN="$OTHER"', "module load cuda"]
    assert problems(config) == []


def test_a_value_of_this_environment_is_found_wherever_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_PASS", VALUE)
    monkeypatch.setenv("SHORT_KEY", "1")
    config = compose([f"+trainer.options.login={VALUE}", "secrets=[MY_PASS]", "trainer.steps=1"])
    (problem,) = problems(config)
    assert problem.startswith("`trainer.options.login` holds the secret MY_PASS")
    assert VALUE not in problem


def test_ordinary_options_are_no_secrets() -> None:
    command = ["python", "train.py", "data.prompt_key=prompt", "--eos_token=<eos>", "--sort-key=a", "reward_fn_key=x"]
    config = compose(["+trainer.options.pad_token=x", "+cluster.env.WANDB_PROJECT=x"])
    config.trainer.command = command
    assert problems(config) == []


def test_a_named_one_must_be_there_at_submission() -> None:
    config = compose(["secrets=[MY_PASS,'SITE_*']"])
    (problem,) = unset_secrets(config, {})
    assert problem.startswith("`secrets` (MY_PASS) is not set in this environment")
    assert unset_secrets(config, {"MY_PASS": "x"}) == []


def test_files_with_secrets_are_linked_and_not_in_the_patch(tmp_path: Path) -> None:
    repository = Repository(tmp_path / "project", {"train.py": "", ".env": "A=1", "settings.py": "", "b.env": ""})
    repository.write({"train.py": "x = 1\n", ".env": f"A={VALUE}", "settings.py": f"token = '{VALUE}'\n"})
    repository.write({"new.py": f"'{VALUE}'"})
    snapshot = create_snapshot(repository.path, tmp_path / "runs", {"MY_PASS": VALUE})
    assert snapshot.code is not None
    top = Path(snapshot.code.tree)
    for name in (".env", "settings.py", "new.py"):
        assert (top / name).readlink() == repository.path / name
    assert b"x = 1" in snapshot.patch
    assert "files with secrets are linked, not copied: .env, new.py, settings.py" in snapshot.text()
    assert not [
        path
        for path in (tmp_path / "runs").rglob("*")
        if path.is_file() and not path.is_symlink() and VALUE in path.read_text(errors="replace")
    ]

    repository.write({"settings.py": f"token = '{VALUE}'\n"})
    repository.commit("a secret")
    repository.write({"settings.py": ""})
    snapshot = create_snapshot(repository.path, tmp_path / "runs", {"MY_PASS": VALUE})
    assert snapshot.patch == b""
    assert "the patch holds a secret and is not kept" in snapshot.text()
