"""A user's repository, and a launcher's checkout beside it, which are edited while the job waits in the queue."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

from tests.integration.jobs.launched import ROOT
from tests.unit.repository import Repository

PROGRAM = """\
import hashlib, json, os, sys
from pathlib import Path

import launcher
from package import value

sys.path.insert(0, "lib")
import helper

Path("written").write_text("")
seen = {
    "value": value,
    "helper": helper.value,
    "data": Path("../data/value").read_text(),
    "directory": os.getcwd(),
    "launcher": launcher.__file__,
    "secrets": [hashlib.sha256(os.environ[name].encode()).hexdigest() for name in ("WANDB_API_KEY", "SITE_PASS")],
}
Path(os.environ["LAUNCHER_RUN_DIR"], "seen.json").write_text(json.dumps(seen))
"""


class Project:
    """``project`` with a committed, a changed and an untracked file, ignored data, and a file of secrets."""

    def __init__(self, folder: Path, secret: str) -> None:
        self.home = folder / "checkout"
        for name in ("launcher", "conf", "sbatch_templates"):
            shutil.copytree(ROOT / name, self.home / name, ignore=shutil.ignore_patterns("__pycache__"))
        files = {
            ".gitignore": "data/\n",
            "package/__init__.py": "value = 'committed'\n",
            "package/__main__.py": "",
            "work/train.py": PROGRAM,
            "work/.env": f"WANDB_API_KEY={secret}\n",
        }
        self.repository = Repository(folder / "project", files)
        self.repository.write({"data/value": "data", "work/lib/helper.py": "value = 'untracked'\n"})
        self.repository.write({"package/__init__.py": "value = 'changed'\n"})
        self.work = self.repository.path / "work"

    def edit(self) -> None:
        """Makes everything that could be run wrong."""
        wrong = "raise SystemExit('this was edited after the submission')\n"
        self.repository.write({"package/__init__.py": wrong, "work/train.py": wrong, "work/lib/helper.py": wrong})
        for name in ("node/shim.py", "node/agent.py", "inference/server.py", "submit/executor.py", "__init__.py"):
            assert (self.home / "launcher" / name).exists()
            (self.home / "launcher" / name).write_text(wrong)


def check_seen(run_dir: Path, secrets: dict[str, str]) -> None:
    """What the program saw is what there was at submission, at the same place in the run's view of it."""
    seen = json.loads((run_dir / "seen.json").read_text())
    assert (seen["value"], seen["helper"], seen["data"]) == ("changed", "untracked", "data")
    assert Path(seen["directory"]) == run_dir / "code" / "work"
    assert Path(seen["launcher"]).is_relative_to(run_dir.parent / ".snapshots")
    assert seen["secrets"] == [hashlib.sha256(value.encode()).hexdigest() for value in secrets.values()]
    assert (run_dir / "code" / "work" / "written").exists()


def files_with(folder: Path, values: list[str]) -> list[Path]:
    """Files below ``folder`` that hold one of ``values``, whatever they are; links are not followed."""
    found = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    assert len(found) > 20
    return [path for path in found if any(value.encode() in path.read_bytes() for value in values)]
