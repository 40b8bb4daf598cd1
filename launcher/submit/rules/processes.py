"""Names, commands and environments: what becomes directories and processes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from launcher.config.schema import Config
from launcher.config.secrets import is_secret
from launcher.layout.environment import is_protected

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def problems(config: Config) -> Iterator[str]:
    """What no directory or process can be made of."""
    if not _NAME.fullmatch(config.name):
        yield (
            f"`name` ({config.name}) cannot be a directory and a job name. HINT: use up to 100 letters, digits and ._-,"
            " a letter or digit first."
        )
    yield from _output_dir(config.output_dir)
    yield from _command(config.trainer.command)
    for path, env in (
        ("cluster.env", config.cluster.env),
        ("trainer.env", config.trainer.env),
        ("inference.env", config.inference.env),
    ):
        yield from _environment(path, env)


def _output_dir(value: str) -> Iterator[str]:
    if not value.strip():
        yield "`output_dir` ('') is empty. HINT: set `output_dir=runs`."
        return
    if value.startswith("~"):
        yield f"`output_dir` ({value}) is not expanded. HINT: set `output_dir={Path(value).expanduser()}`."
        return
    for path in (Path(value), *Path(value).parents):
        if path.exists():
            if not path.is_dir():
                yield f"`output_dir` ({value}) cannot be made: {path} is a file. HINT: name another directory."
            return


def _command(command: list[str] | None) -> Iterator[str]:
    if command is None:
        return
    if not command or not command[0].strip():
        yield (
            f"`trainer.command` ({command}) names no program. HINT: set `trainer.command=[python,train.py]`, or null"
            " for the reference trainer."
        )
    elif len(command) == 1 and " " in command[0].strip() and not Path(command[0]).exists():
        words = ",".join(command[0].split())
        yield (
            f"`trainer.command` ({command[0]!r}) is one word with spaces, and no shell splits it."
            f" HINT: set `trainer.command=[{words}]`."
        )
    elif command[0] in ("torchrun", "accelerate", "deepspeed", "srun", "mpirun"):
        yield (
            f"`trainer.command` ({command[0]} ...) starts processes of its own, but the agent already starts one per"
            " rank. HINT: name the program itself, `trainer.command=[python,train.py]`."
        )
    if any("\0" in word for word in command):
        yield "`trainer.command` holds a null byte. HINT: remove it."


def _environment(path: str, env: dict[str, str]) -> Iterator[str]:
    for name, value in env.items():
        if not _VARIABLE.fullmatch(name):
            yield f"`{path}` ({name}) is no name of a variable. HINT: use letters, digits and _, no digit first."
        elif is_protected(name):
            shown = "" if is_secret(name) else f" ({value})"
            yield f"`{path}.{name}`{shown} is set by the launcher. HINT: leave it out{_instead(name)}."
        elif "\0" in value:
            yield f"`{path}.{name}` holds a null byte. HINT: remove it."


def _instead(name: str) -> str:
    settings = {
        "VLLM_CPU_KVCACHE_SPACE": "inference.cpu_kvcache_space_gb",
        "INFER_TP": "inference.tensor_parallel_size",
        "NUM_INFERENCE_NODES": "layout.inference_nodes",
        "NUM_TRAINING_NODES": "layout.nodes",
        "WORLD_SIZE": "trainer.workers_per_node",
        "LOCAL_WORLD_SIZE": "trainer.workers_per_node",
    }
    return f"; `{settings[name]}` decides it" if name in settings else ""
