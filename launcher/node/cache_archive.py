"""Compile caches on the shared filesystem: one tar file per key and role, replaced as a whole, read by one stream."""

from __future__ import annotations

import contextlib
import os
import secrets
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

STALE_S = 3600.0
"""The writer of an older draft has ended."""

_PASSING = (".lock", ".tmp")
GB = 1 << 30


def seed(archive: Path, directory: Path) -> int:
    """Unpacks an archive into a directory; files that are there stay. How many were added.

    Raises:
        OSError, tarfile.TarError: it is damaged, or there is no room. What was added until then is whole.
    """
    added = 0
    with tarfile.open(archive, "r|") as tar:
        for member in tar:
            target = directory / member.name
            inside = target.resolve().is_relative_to(directory.resolve())
            if not member.isfile() or not inside or target.exists():
                continue
            source = tar.extractfile(member)
            assert source is not None
            target.parent.mkdir(parents=True, exist_ok=True)
            draft = target.with_name(f".{secrets.token_hex(4)}.tmp")
            try:
                with draft.open("wb") as file:
                    while block := source.read(1 << 20):
                        file.write(block)
                draft.chmod(member.mode & 0o700)
                os.utime(draft, (member.mtime, member.mtime))
                draft.replace(target)
            except BaseException:
                draft.unlink(missing_ok=True)
                raise
            added += 1
    return added


def save(directory: Path, archive: Path, *, most_bytes: int) -> int:
    """Replaces an archive by one of what is in a directory, the newest files first, as many as fit. How many those are.

    Any number of runs may save at once: each archive is whole, and the last one stays.

    Raises:
        OSError: the shared filesystem does not take it; the archive is what it was.
    """
    archive.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(archive.parent)
    draft = archive.with_name(f".{archive.name}.{secrets.token_hex(4)}.tmp")
    count, left = 0, most_bytes
    try:
        with tarfile.open(draft, "w", format=tarfile.PAX_FORMAT) as tar:
            for path, size, _ in sorted(files(directory), key=lambda item: -item[2]):
                if size > left:
                    continue
                left -= size
                with contextlib.suppress(FileNotFoundError):  # a compiler has replaced it
                    tar.add(path, arcname=str(path.relative_to(directory)), recursive=False)
                    count += 1
        draft.replace(archive)
    finally:
        draft.unlink(missing_ok=True)
    return count


def files(directory: Path) -> Iterator[tuple[Path, int, float]]:
    """Every finished file below a directory, with its size in bytes and its time."""
    for folder, _, names in os.walk(directory):
        for name in names:
            path = Path(folder) / name
            if name.endswith(_PASSING) or name.startswith("tmp."):
                continue
            with contextlib.suppress(OSError):
                status = path.lstat()
                if path.is_file() and not path.is_symlink():
                    yield path, status.st_size, status.st_mtime


def fingerprint(directory: Path) -> tuple[int, int]:
    """Count and total size of the files: what changes when a compiler has worked."""
    sizes = [size for _, size, _ in files(directory)]
    return len(sizes), sum(sizes)


def _remove_stale(folder: Path) -> None:
    for path in folder.glob(".*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > STALE_S:
                path.unlink()
