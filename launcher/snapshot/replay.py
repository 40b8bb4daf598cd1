"""A run that is submitted again with its code, and what is different between it and today."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from launcher.common.errors import LauncherError
from launcher.config.compose import CONFIG_FILE, from_yaml
from launcher.config.overrides import as_meant
from launcher.config.renamed import with_current_names
from launcher.config.schema import Config
from launcher.snapshot.create import launcher_home, scan, scan_launcher
from launcher.snapshot.record import ENVIRONMENT, SavedCode, SnapshotRecord, fingerprint, read_record
from launcher.snapshot.store import TreeEntry, read_entries, read_manifest


class ReplayError(LauncherError):
    """The run cannot be submitted again like this."""

    exit_code = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed(SavedCode):
    """The code of an earlier run, ``directory``."""

    def text(self) -> str:
        """One line about the code that runs."""
        digest = f"snapshot {self.kept.code.digest}" if self.kept.code else "the launcher's snapshot"
        at = f"commit {self.git.commit[:10]}" if self.git is not None and self.git.commit else "no commit"
        return f"{at}{', changed since' if self.patch else ''}: {digest} of {self.replay_of}"


def replayed(run_dir: Path) -> Replayed:
    """The code of the run in ``run_dir``, if it still is what it was.

    Raises:
        ReplayError: it has none, or it was changed or removed.
    """
    record = read_record(run_dir)
    if record is None:
        raise ReplayError(
            f"{run_dir.name} has no snapshot of its code (`snapshot=false`). HINT: `--code current` runs today's."
        )
    for tree in (record.code, record.launcher):
        if tree is None:
            continue
        try:
            changed = damaged_files(Path(tree.tree))
        except OSError as error:
            raise ReplayError(
                f"The snapshot of {run_dir.name} is gone: {error.filename}. HINT: `--code current` runs today's code."
            ) from error
        if changed:
            raise ReplayError(
                f"The snapshot of {run_dir.name} was changed after it was taken, in {tree.tree}:"
                f" {', '.join(changed.lines())}. HINT: `--code current` runs today's code."
            )
    return Replayed.load(run_dir, replay_of=run_dir.name)


def replayed_config(run_dir: Path, overrides: Sequence[str]) -> Config:
    """The frozen configuration of a run with values changed.

    Args:
        overrides: in Hydra's syntax, values only: presets were resolved when the run was submitted.

    Raises:
        ReplayError: an override changes a preset, or has several values.
        HydraException, OmegaConfBaseException: an override is wrong, or today's launcher does not know a setting.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    text = (run_dir / CONFIG_FILE).read_text(encoding="utf-8")
    frozen = OmegaConf.create(with_current_names(OmegaConf.to_container(OmegaConf.create(text))))
    for override in OverridesParser.create().parse_overrides(overrides=as_meant(overrides)):
        if override.is_sweep_override():
            raise ReplayError(f"`{override.input_line}` has several values. HINT: replay once for each.")
        key: str = override.key_or_group
        value: Any = override.value()
        if OmegaConf.is_dict(OmegaConf.select(frozen, key)) and isinstance(value, str):
            raise ReplayError(
                f"`{override.input_line}` chooses a preset, but the presets of {run_dir.name} were resolved when it was"
                f" submitted. HINT: set single values, as in `layout.nodes=4`, or start a new run."
            )
        if override.is_delete():
            *groups, name = key.split(".")
            owner: Any = OmegaConf.select(frozen, ".".join(groups)) if groups else frozen
            owner.pop(name)
        else:
            OmegaConf.update(frozen, key, value, force_add=True)
    return from_yaml(OmegaConf.to_yaml(frozen))


def recorded_environment(run_dir: Path) -> dict[str, Any]:
    """The fingerprint that a run keeps; empty if it has none."""
    path = run_dir / ENVIRONMENT
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def submitted_from(run_dir: Path) -> Path:
    """The directory whose code a replay with today's code takes.

    Raises:
        ReplayError: it is gone.
    """
    record = read_record(run_dir)
    directory = Path(record.directory) if record is not None else Path.cwd()
    if not os.access(directory, os.X_OK):
        raise ReplayError(f"{directory}, where {run_dir.name} was submitted from, is gone.")
    return directory


SHOWN = 10
_FACTS = ("python", "platform", "launcher", "cuda_driver", "executable")


@dataclass(frozen=True, slots=True, kw_only=True)
class FileChanges:
    """Names that differ from then to now."""

    changed: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.changed or self.added or self.removed)

    def lines(self) -> list[str]:
        """As ``git status --short`` shows them; the first few."""
        every = [(name, "M") for name in self.changed] + [(name, "A") for name in self.added]
        every = sorted(every + [(name, "D") for name in self.removed])
        more = [f"... and {len(every) - SHOWN} more"] if len(every) > SHOWN else []
        return [f"{letter} {name}" for name, letter in every[:SHOWN]] + more


@dataclass(frozen=True, slots=True, kw_only=True)
class Differences:
    """From the run to today."""

    code: FileChanges | None
    """The user's repository; None if it was not snapshotted, or it or the snapshot is gone."""

    launcher: FileChanges | None
    """The same for the launcher's checkout."""

    packages: dict[str, tuple[str | None, str | None]] = field(default_factory=dict)
    """Versions then and now; None where the package was, or is, not there."""

    facts: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    """What else differs in the environment."""

    def to_json(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        return asdict(self)

    def text(self) -> str:
        """For people; one line if nothing differs."""
        lines: list[str] = []
        for what, files in (("code", self.code), ("launcher", self.launcher)):
            if files:
                count = len(files.changed) + len(files.added) + len(files.removed)
                lines.append(f"{what} differs from today's checkout in {count} {'file' if count == 1 else 'files'}:")
                lines += [f"  {line}" for line in files.lines()]
        versions = {**self.facts, **self.packages}
        if versions:
            lines.append("environment differs:")
            lines += [f"  {name} {then or '(none)'} -> {now or '(none)'}" for name, (then, now) in versions.items()]
        return "\n".join(lines or ["neither code nor environment has changed"])


def differences(record: SnapshotRecord | None, environment: Mapping[str, Any], output_dir: Path) -> Differences:
    """Compares a run with this moment.

    Args:
        record: the run's snapshot.
        environment: its fingerprint.

    Raises:
        GitError: git cannot read today's checkout.
    """
    code = own = None
    if record is not None and record.code is not None and Path(record.code.root).is_dir():
        root = Path(record.code.root)
        # Values of secrets do not matter for the comparison.
        code = _changes(Path(record.code.tree), scan(root, output_dir.resolve(), {}).entries)
    if record is not None and record.launcher is not None and (home := launcher_home()) is not None:
        own = _changes(Path(record.launcher.tree), scan_launcher(home))
    today = fingerprint()
    then, now = environment.get("packages", {}), today["packages"]
    return Differences(
        code=code,
        launcher=own,
        packages={
            name: (then.get(name), now.get(name)) for name in sorted({*then, *now}) if then.get(name) != now.get(name)
        },
        facts={name: (environment.get(name), today[name]) for name in _FACTS if environment.get(name) != today[name]},
    )


def damaged_files(tree: Path) -> FileChanges:
    """What was changed in a snapshot since it was made; new files, such as Python's caches, are not looked for.

    Raises:
        OSError: it is gone.
    """
    then = read_manifest(tree)
    return _compare(then, read_entries(tree, then))


def _changes(tree: Path, entries: Iterable[TreeEntry]) -> FileChanges | None:
    """None if the snapshot is gone, so that nothing is known."""
    try:
        return _compare(read_manifest(tree), entries)
    except FileNotFoundError:
        return None


def _compare(then: Mapping[str, tuple[str, str]], entries: Iterable[TreeEntry]) -> FileChanges:
    now = {entry.path: (entry.kind, entry.content) for entry in entries}
    # Links lead out of the tree; their targets are no part of the code.
    links = {name for name in {*then, *now} if then.get(name, now.get(name, ("", "")))[0] == "link"}
    return FileChanges(
        changed=tuple(sorted(name for name in then.keys() & now.keys() - links if then[name] != now[name])),
        added=tuple(sorted(now.keys() - then.keys() - links)),
        removed=tuple(sorted(then.keys() - now.keys() - links)),
    )
