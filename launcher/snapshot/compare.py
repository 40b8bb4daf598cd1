"""What is different between a run and today: files of its code, packages of its environment."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from launcher.snapshot.fingerprint import fingerprint
from launcher.snapshot.look import look, look_at_launcher
from launcher.snapshot.place import SnapshotRecord
from launcher.snapshot.take import launcher_home
from launcher.snapshot.tree import TreeEntry, read_entries, read_manifest

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
    """The launcher's checkout, likewise."""

    packages: dict[str, tuple[str | None, str | None]] = field(default_factory=dict)
    """Versions then and now; None where the package was, or is, not there."""

    facts: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    """What else differs in the environment."""

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
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
        # A secret hides a file whatever it was then; its value does not matter here.
        code = _changes(Path(record.code.tree), look(root, output_dir.resolve(), {}).entries)
    if record is not None and record.launcher is not None and (home := launcher_home()) is not None:
        own = _changes(Path(record.launcher.tree), look_at_launcher(home))
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


def damage(tree: Path) -> FileChanges:
    """What was changed in a snapshot since it was taken; new files, such as Python's caches, are not looked for.

    Raises:
        OSError: it is gone.
    """
    then = read_manifest(tree)
    return _compare(then, read_entries(tree, then))


def _changes(tree: Path, entries: Iterable[TreeEntry]) -> FileChanges | None:
    """None if the snapshot is gone: then nobody knows."""
    try:
        return _compare(read_manifest(tree), entries)
    except FileNotFoundError:
        return None


def _compare(then: Mapping[str, tuple[str, str]], entries: Iterable[TreeEntry]) -> FileChanges:
    now = {entry.path: (entry.kind, entry.content) for entry in entries}
    # Links lead out of the tree; where from does not say anything about the code.
    links = {name for name in {*then, *now} if then.get(name, now.get(name, ("", "")))[0] == "link"}
    return FileChanges(
        changed=tuple(sorted(name for name in then.keys() & now.keys() - links if then[name] != now[name])),
        added=tuple(sorted(now.keys() - then.keys() - links)),
        removed=tuple(sorted(then.keys() - now.keys() - links)),
    )
