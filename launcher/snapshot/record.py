"""What a run directory keeps of its code and its environment, and where the run's processes run."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import launcher
from launcher.common.jsonio import read_json
from launcher.snapshot.git import GitState

SNAPSHOT = "snapshot.json"
"""Of a run: which code it runs."""

GIT = "git.json"
"""Of a run: commit and branch of the repository that it was submitted from."""

PATCH = "changes.patch"
"""Of a run: tracked changes since that commit, for ``git apply``."""

RENDERED = ".rendered"
"""Below ``output_dir``: the code that rendered scripts run, one directory for each script."""

CODE = "code"
"""Of a run: the directory that stands for the repository's top."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """A directory that was copied, and its copy."""

    root: str
    """The original."""

    digest: str
    tree: str
    """The copy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotRecord:
    """What a run runs, as its run directory keeps it."""

    directory: str
    """Working directory of the submission."""

    folder: str
    """The same, relative to ``code.root``."""

    code: Tree | None
    """The user's repository; None where there is none, and processes then run in ``directory`` itself."""

    launcher: Tree | None
    """The launcher, if it is neither installed nor part of ``code``."""

    python_path: tuple[str, ...]
    """``PYTHONPATH`` of every process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeLocation:
    """Where to start a process of a run."""

    directory: Path
    python_path: str

    def environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        """``environ`` for a process that is started here."""
        # A shell trusts PWD where the kernel resolves links, and so would show another name for the same place.
        return {**environ, "PYTHONPATH": self.python_path, "PWD": str(self.directory)}


def write_record(run_dir: Path, record: SnapshotRecord) -> None:
    """Keeps ``record`` in the run directory, and lays out the view of its code there."""
    (run_dir / SNAPSHOT).write_text(json.dumps(asdict(record), indent=2) + "\n", encoding="utf-8")
    if record.code is not None:
        _lay_out(Path(record.code.tree), run_dir / CODE, Path(record.folder))


def read_record(run_dir: Path) -> SnapshotRecord | None:
    """What :func:`write_record` wrote; None for a run with ``snapshot=false``."""
    data = read_json(run_dir / SNAPSHOT)
    if data is None:
        return None
    # Not the common codec, whose import a submission would pay for.
    trees = {name: Tree(**data[name]) if data[name] else None for name in ("code", "launcher")}
    return SnapshotRecord(**{**data, **trees, "python_path": tuple(data["python_path"])})


def code_location(run_dir: Path) -> CodeLocation | None:
    """Where processes of the run are to be started; None with ``snapshot=false``: where, and as, their parent is."""
    record = read_record(run_dir)
    if record is None:
        return None
    directory = Path(record.directory) if record.code is None else run_dir / CODE / record.folder
    return CodeLocation(directory=directory, python_path=os.pathsep.join(record.python_path))


def _lay_out(tree: Path, view: Path, folder: Path) -> None:
    """Makes ``view/folder`` a directory of the run's own, in which every name leads into the snapshot.

    A file that a program writes beside its own is then one of this run, and not of every run with the same code. From
    the top down to ``folder`` each directory is made; what is beside them is one link each.
    """
    parts = folder.parts
    # ``..`` is snapshot from where a link really is.
    view, tree = view.parent.resolve() / view.name, tree.resolve()
    for depth in range(len(parts) + 1):
        view.mkdir()
        onward = parts[depth] if depth < len(parts) else None
        # A folder without files of its own is not in the snapshot.
        for path in tree.iterdir() if tree.is_dir() else ():
            if path.name != onward:
                (view / path.name).symlink_to(os.path.relpath(path, view))
        if onward is not None:
            view, tree = view / onward, tree / onward


ENVIRONMENT = "environment.json"
"""Of a run: its fingerprint."""

_DRIVER = Path("/proc/driver/nvidia/version")
_INSTALLED = re.compile(r"(.+?)-([^-]+)(?:-py[\d.]+)?\.(?:dist|egg)-info")
_VARIABLES = re.compile(
    r"(NCCL|CUDA|TORCH|PYTORCH|VLLM|HF|TRANSFORMERS|OMP|MKL|GLOO|UCX|FI|LD|PYTHON|WANDB|TRITON|XLA|NVIDIA|RAY|TOKENIZERS"
    r"|LAUNCHER|HTTP|HTTPS|NO)_?.*"
)


def fingerprint() -> dict[str, Any]:
    """The environment of this process, as JSON. Of variables, only names: a value may be a secret."""
    packages = installed_packages()
    return {
        "python": platform.python_version(),
        "executable": sys.executable,
        "prefix": sys.prefix,
        "platform": _platform(),
        "launcher": launcher.__version__,
        "cuda_driver": _driver(),
        "nccl": next((packages[name] for name in sorted(packages) if name.startswith("nvidia-nccl")), None),
        "packages": packages,
        "variables": sorted(name for name in os.environ if _VARIABLES.fullmatch(name)),
    }


def installed_packages() -> dict[str, str]:
    """Version of each installed package, by normalized name.

    From the names of directories: ``importlib.metadata`` opens a file for each, which takes seconds on a network.
    """
    found: dict[str, str] = {}
    for entry in sys.path:
        try:
            names = [path.name for path in Path(entry).iterdir()]
        except OSError:
            continue
        for name in names:
            if match := _INSTALLED.fullmatch(name):
                # The first one wins, as it does for `import`.
                found.setdefault(re.sub(r"[-_.]+", "-", match.group(1)).lower(), match.group(2))
    return dict(sorted(found.items()))


def _platform() -> str:
    """As :func:`platform.platform` has it, without the program that it starts for the name of the processor."""
    kernel = os.uname()
    return f"{kernel.sysname}-{kernel.release}-{kernel.machine}-with-{''.join(platform.libc_ver())}"


def _driver() -> str | None:
    """Version of the NVIDIA driver; None if this machine has none, as login nodes often do not."""
    if not _DRIVER.exists():
        return None
    found = re.search(r"Kernel Module\D*([\d.]+)", _DRIVER.read_text(encoding="utf-8"))
    return found.group(1) if found else None


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedCode:
    """What :func:`save` wrote into a directory."""

    directory: Path
    kept: SnapshotRecord
    git: GitState | None
    patch: bytes
    replay_of: str | None = None
    """Name of the run that the new one is a replay of."""

    @classmethod
    def load(cls, directory: Path, replay_of: str | None = None) -> Self:
        """What ``directory`` keeps.

        Raises:
            FileNotFoundError: it keeps no code.
        """
        record = read_record(directory)
        if record is None:
            raise FileNotFoundError(f"{directory} keeps no code")
        git = json.loads((directory / GIT).read_text(encoding="utf-8")) if (directory / GIT).exists() else None
        return cls(
            directory=directory,
            kept=record,
            git=GitState(root=Path(git["root"]), commit=git["commit"], branch=git["branch"]) if git else None,
            patch=(directory / PATCH).read_bytes() if (directory / PATCH).exists() else b"",
            replay_of=replay_of,
        )

    def record(self, run_dir: Path) -> SnapshotRecord:
        """The same code as the run in ``run_dir`` uses it: in its own view."""
        view = os.path.normpath(self.directory / CODE)
        path = tuple(
            str(run_dir / CODE / Path(entry).relative_to(view)) if Path(entry).is_relative_to(view) else entry
            for entry in self.kept.python_path
        )
        return dataclasses.replace(self.kept, python_path=path)


class Code(Protocol):
    """What a run runs: the code of its submission, or that of an earlier run."""

    @property
    def git(self) -> GitState | None:
        """The repository's state; None outside of one."""

    @property
    def patch(self) -> bytes:
        """Tracked changes since the commit."""

    @property
    def replay_of(self) -> str | None:
        """Name of the run that the new one is a replay of."""

    def record(self, run_dir: Path) -> SnapshotRecord:
        """The code as the run in ``run_dir`` uses it."""


def save(run_dir: Path, code: Code | None) -> None:
    """Writes the code's record, view and git state, and the environment, into a run directory.

    Args:
        code: None with ``snapshot=false``.
    """
    (run_dir / ENVIRONMENT).write_text(json.dumps(fingerprint(), indent=1) + "\n", encoding="utf-8")
    if code is None:
        return
    write_record(run_dir, code.record(run_dir))
    if code.git is not None:
        git = {"root": str(code.git.root), "commit": code.git.commit, "branch": code.git.branch}
        (run_dir / GIT).write_text(
            json.dumps({**git, "is_changed": bool(code.patch)}, indent=1) + "\n", encoding="utf-8"
        )
    if code.patch:
        (run_dir / PATCH).write_bytes(code.patch)
