"""Resolves paths of a configuration, so that nodes use the same files as the place of submission."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from launcher.config.schema import Config
from launcher.snapshot.create import Snapshot, is_below

LONGEST_PATH = 4096
_PATHS = (("model", "path"), ("checkpoint", "dir"), ("preflight", "bad_node_dir"))
_FILES = ("template", "container")
"""Of the cluster: paths, or something else."""


def resolve_paths(config: Config, directory: Path) -> Config:
    """``config`` with the paths of its own settings absolute, as seen from ``directory``."""
    changed: dict[str, Any] = {"output_dir": str(directory / config.output_dir)}
    for group, name in _PATHS:
        owner = getattr(config, group)
        value = getattr(owner, name, None)
        if value is not None and not value.startswith("~"):
            changed[group] = dataclasses.replace(owner, **{name: str(directory / value)})
    cluster = changed.get("cluster", config.cluster)
    files = {
        name: str(directory / value)
        for name in _FILES
        # Or it is the name of a shipped template, or of an image in a registry.
        if (value := getattr(cluster, name, None)) is not None and (directory / value).is_file()
    }
    return dataclasses.replace(config, **{**changed, "cluster": dataclasses.replace(cluster, **files)})


def resolve_command_paths(config: Config, snapshot: Snapshot) -> Config:
    """``config`` with the words of its commands as the nodes need them.

    A file of the code is named relative to the working directory, even if it was named absolutely: it
    stands for the snapshot's copy. What exists, but is not in the snapshot, is named absolutely.
    """
    if snapshot.code is None:
        return config
    command = config.trainer.command
    if command is not None:
        command = [resolve_word(word, snapshot) for word in command]
    args = [resolve_word(word, snapshot) for word in config.inference.args]
    return dataclasses.replace(
        config,
        trainer=dataclasses.replace(config.trainer, command=command),
        inference=dataclasses.replace(config.inference, args=args),
    )


def resolve_word(word: str, snapshot: Snapshot) -> str:
    """One word of a command line; of ``--option=PATH`` the path."""
    option, equals, value = word.partition("=") if word.startswith("-") else ("", "", word)
    if "/" not in value or "\n" in value or len(value) > LONGEST_PATH:
        return word
    # Not resolved: a link is a name of its own.
    path = Path(os.path.normpath(snapshot.directory / value))
    if snapshot.code is None or not os.path.lexists(path):
        return word
    root = Path(snapshot.code.root)
    name = str(path.relative_to(root)) if path.is_relative_to(root) else None
    if Path(value).is_absolute():
        if name not in snapshot.copied:
            return word
        here = os.path.relpath(path, snapshot.directory)
        # A program without a slash would be looked for in PATH.
        return f"{option}{equals}{here if '/' in here else f'./{here}'}"
    if name is not None and _is_in(name, snapshot):
        return word
    return f"{option}{equals}{path}"


def _is_in(name: str, snapshot: Snapshot) -> bool:
    """Whether the snapshot has this name."""
    if name == "." or name in snapshot.copied or is_below(name, snapshot.linked):
        return True
    return any(copied.startswith(f"{name}/") for copied in (*snapshot.copied, *snapshot.linked))
