"""Checkpoint directories on a filesystem: which are complete, how one becomes complete, which are removed.

A checkpoint is written into a hidden draft. Its last file is the manifest, with size and digest of every other one;
then the draft is renamed. What has no manifest, or does not agree with it, is never taken.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from launcher.common.codec import from_json

MANIFEST = "manifest.json"
_NAME = re.compile(r"step-(\d{10})")
_DRAFT = re.compile(r"\.step-\d{10}\..*")
_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """One file of a checkpoint."""

    size: int
    """Bytes."""

    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a checkpoint holds."""

    step: int
    version: int
    """Of the weights, as the engines know it."""

    world_size: int
    time: float
    """Seconds since the epoch."""

    files: Mapping[str, File]
    """By name."""

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files.values())


def checkpoint_path(root: Path, step: int) -> Path:
    """Where the checkpoint of ``step`` lies once it is complete."""
    return root / f"step-{step:010d}"


def draft_path(root: Path, step: int, owner: str) -> Path:
    """Where it is written. ``owner`` separates writers at the same time, such as a rank of an older attempt."""
    return root / f".step-{step:010d}.{owner}"


def complete_checkpoints(root: Path) -> list[Path]:
    """Those whose files are all there, with the sizes that the manifest gives; the latest first."""
    if not root.is_dir():
        return []
    found = [path for path in root.iterdir() if _NAME.fullmatch(path.name) and _has_its_files(path)]
    return sorted(found, reverse=True)


def latest_step(directory: Path) -> int | None:
    """The step of the latest complete checkpoint; None if there is none."""
    found = complete_checkpoints(directory)
    return read_manifest(found[0]).step if found else None


def read_manifest(path: Path) -> Manifest:
    """The manifest of the checkpoint in ``path``.

    Raises:
        OSError, ValueError: there is none that can be read.
    """
    return from_json((path / MANIFEST).read_bytes(), Manifest)


def wrong_files(path: Path, manifest: Manifest, names: Iterable[str]) -> list[str]:
    """Those of ``names`` whose content is not what was written."""
    return [name for name in names if describe(path / name) != manifest.files[name]]


def describe(path: Path) -> File:
    """Size and digest of a file."""
    digest = hashlib.sha256()
    size = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            size += len(block)
    return File(size=size, sha256=digest.hexdigest())


def write_durably(path: Path, text: str) -> None:
    """Writes a file; it survives a loss of power when this returns."""
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def complete(draft: Path, path: Path, manifest: Manifest) -> None:
    """Makes a draft, to which all files have been written, the checkpoint ``path``, which counts from here on.

    A checkpoint of the same name was found broken, or is made anew after a restart; it gives way.
    """
    write_durably(draft / MANIFEST, json.dumps(asdict(manifest)) + "\n")
    _sync_directory(draft)
    if path.exists():
        aside = draft.with_name(f"{draft.name}.old")
        path.rename(aside)
        draft.rename(path)
        shutil.rmtree(aside)
    else:
        draft.rename(path)
    _sync_directory(path.parent)


def prune(root: Path, newest: Path, keep: int) -> None:
    """Removes all but ``newest``, which was just written, and the complete ones before it, ``keep`` together.

    What is later than ``newest`` was damaged, or the trainer would have gone on from there. Drafts have no use.
    """
    kept = [path for path in complete_checkpoints(root) if path.name <= newest.name][:keep]
    for path in root.iterdir():
        if _DRAFT.fullmatch(path.name):
            _remove(path)
        elif _NAME.fullmatch(path.name) and path not in kept:
            # The manifest first: half removed is not complete.
            (path / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(path, ignore_errors=True)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink()


def _has_its_files(path: Path) -> bool:
    try:
        files = read_manifest(path).files
        return all((path / name).stat().st_size == file.size for name, file in files.items())
    except (OSError, ValueError):
        return False


def _sync_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
