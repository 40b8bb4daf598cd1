"""SLURM's settings: their formats, and options of ``sbatch`` and ``srun`` that the launcher decides itself."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from launcher.config.schema import Config, NodesConfig, SlurmClusterConfig
from launcher.slurm.states import NO_LIMIT, parse_limit
from launcher.submit.job_script import template_names, template_path
from launcher.submit.resources import ARRAY, HETEROGENEOUS, PARTITION_TIME, is_heterogeneous, time_limit

_TIME_LIMIT = re.compile(r"\d+(:\d{1,2}){0,2}|\d+-\d{1,2}(:\d{1,2}){0,2}")
_MEM = re.compile(r"\d+[KMGT]?B?", re.IGNORECASE)
_SEXAGESIMAL = 3600
"""YAML reads an unquoted 1:00:00 as this number."""

_OWN = "the launcher decides it"
_GPUS = "set `layout.gpus_per_node` and `cluster.gpu_request`"
OWNED_SBATCH: dict[str, str] = {
    "nodes": "set `layout.nodes`",
    **dict.fromkeys(("ntasks", "ntasks-per-node"), "there is one task per node"),
    "job-name": "set `name`",
    **{
        name: f"set `cluster.{name}`"
        for name in (
            *("partition", "account", "qos", "time", "constraint", "exclude", "nodelist", "reservation", "mem"),
            *("exclusive", "wait"),
        )
    },
    "cpus-per-task": "set `cluster.cpus_per_task`",
    **dict.fromkeys(("gpus-per-node", "gpus", "gpus-per-task"), _GPUS),
    **dict.fromkeys(("output", "error"), "logs go to the run directory"),
    **dict.fromkeys(("input", "open-mode", "wrap", "parsable", "test-only", "no-kill", "het-group"), _OWN),
    "array": "use a sweep (`-m`), one job per run",
    "signal": "set `cluster.signal_s`",
    **dict.fromkeys(("requeue", "no-requeue"), "set `cluster.requeue`"),
    "export": "set `cluster.env`",
    "container-image": "set `cluster.container`",
    "container-mounts": "set `cluster.container_mounts`",
}
"""Options of ``sbatch`` that ``cluster.sbatch`` may not repeat, and what to do instead."""

_SHORT_SBATCH = {
    "N": "nodes", "n": "ntasks", "J": "job-name", "p": "partition", "A": "account", "q": "qos", "t": "time",
    "C": "constraint", "x": "exclude", "w": "nodelist", "c": "cpus-per-task", "G": "gpus", "W": "wait", "o": "output",
    "e": "error", "i": "input", "a": "array", "k": "no-kill",
}  # fmt: skip

OWNED_SRUN = {
    *("nodes", "ntasks", "ntasks-per-node", "output", "error", "input", "container-image", "container-mounts"),
    *("kill-on-bad-exit", "no-kill", "het-group", "export"),
}
_SHORT_SRUN = {**{short: _SHORT_SBATCH[short] for short in "Nnoeik"}, "K": "kill-on-bad-exit"}


def slurm_problems(config: Config) -> Iterator[str]:
    """What SLURM, or the job script, would take wrongly."""
    cluster = config.cluster
    if not isinstance(cluster, SlurmClusterConfig):
        if cluster.setup:
            yield (
                f"`cluster.setup` ({cluster.setup[0]!r}, ...) is run on SLURM only, but `cluster.kind` is"
                f" {cluster.kind}. HINT: leave it out, or add `+cluster=slurm`."
            )
        return
    yield from _paths(config, cluster)
    yield from _formats(cluster)
    yield from _nodes(config, cluster)
    yield from _template(cluster)
    yield from _container(cluster)
    yield from _sbatch(cluster)
    yield from _srun(cluster)


def _paths(config: Config, cluster: SlurmClusterConfig) -> Iterator[str]:
    """The output directory as part of what SLURM, and a container's runtime, read as patterns."""
    path = str(Path(config.output_dir).absolute())
    special = {"%": "SLURM puts job ids in its place", "\\": "SLURM takes it for an escape"}
    if cluster.container is not None:
        special |= {",": "it separates mounts of a container", ":": "it separates the two sides of a mount"}
    found = [f"{char!r} ({why})" for char, why in special.items() if char in path]
    if not path.isprintable():
        found.append("a character that cannot be printed")
    if found:
        yield (
            f"`output_dir` ({config.output_dir!r}) is {path!r}, which holds {', '.join(found)}."
            " HINT: set `output_dir` to a path without it."
        )


def _formats(cluster: SlurmClusterConfig) -> Iterator[str]:
    time = cluster.time
    if time is None or time == PARTITION_TIME or time.upper() in NO_LIMIT:
        pass
    elif not _TIME_LIMIT.fullmatch(time) or not any(digit in "123456789" for digit in time):
        yield (
            f"`cluster.time` ({time}) is no time limit. HINT: write minutes, `hh:mm:ss` or `days-hh:mm:ss`:"
            " `cluster.time=04:00:00`; `UNLIMITED`, or `partition` for the partition's own limit."
        )
    elif time.isdigit() and int(time) >= _SEXAGESIMAL:
        yield (
            f"`cluster.time` ({time}) would be {int(time) // 1440} days: a number means minutes, and a YAML file turns"
            " an unquoted 12:00:00 into 43200. HINT: quote it in the file, or write `days-hh:mm:ss`."
        )
    if cluster.mem is not None and not _MEM.fullmatch(cluster.mem):
        yield (
            f"`cluster.mem` ({cluster.mem}) is no amount of memory. HINT: write `cluster.mem=64G`, or `0` for all of"
            " the node's."
        )
    for name in (
        *("partition", "account", "qos", "constraint", "exclude", "nodelist", "reservation", "gpu_type", "container"),
        *("container_mounts", "python"),
    ):
        value: str | None = getattr(cluster, name)
        if value is not None and (not value.strip() or "\n" in value):
            yield f"`cluster.{name}` ({value!r}) is empty or has several lines. HINT: set it, or leave it null."
    if cluster.gpu_type is not None and cluster.gpu_request == "none":
        yield (
            f"`cluster.gpu_type` ({cluster.gpu_type}) contradicts `cluster.gpu_request` (none)."
            " HINT: set `cluster.gpu_request=gres` or leave the type out."
        )


def _nodes(config: Config, cluster: SlurmClusterConfig) -> Iterator[str]:
    """The settings of one role's nodes."""
    for role in ("trainer", "inference"):
        nodes: NodesConfig = getattr(cluster, role)
        for field in fields(nodes):
            value = getattr(nodes, field.name)
            if isinstance(value, str) and (not value.strip() or "\n" in value):
                yield f"`cluster.{role}.{field.name}` ({value!r}) is empty or has several lines. HINT: leave it null."
        if nodes.mem is not None and not _MEM.fullmatch(nodes.mem):
            yield (
                f"`cluster.{role}.mem` ({nodes.mem}) is no amount of memory."
                f" HINT: write `cluster.{role}.mem=64G`, or `0` for all of the node's."
            )
    if is_heterogeneous(cluster) and config.layout.inference_nodes == 0:
        yield (
            "`layout.inference_nodes` (0) lets every node do both, but `cluster.trainer` and `cluster.inference` ask"
            " for different nodes. HINT: set `layout.inference_nodes=1` or more, or leave these settings out."
        )


def _template(cluster: SlurmClusterConfig) -> Iterator[str]:
    if is_heterogeneous(cluster) and cluster.template in template_names() and cluster.template != HETEROGENEOUS:
        yield (
            f"`cluster.template` ({cluster.template}) asks for all nodes in the same way, but `cluster.trainer` or"
            f" `cluster.inference` is set. HINT: leave it out, or set `cluster.template={HETEROGENEOUS}`."
        )
    elif cluster.template == ARRAY:
        yield (
            f"`cluster.template` ({ARRAY}) is for many runs at once. HINT: leave it out; a sweep (`-m`) with"
            " `sweep.array=true` chooses it."
        )
    elif not template_path(cluster).is_file():
        yield (
            f"`cluster.template` ({cluster.template}) is neither a template of the launcher's"
            f" ({', '.join(template_names())}) nor a file. HINT: leave it out, or give the path of a file."
        )


def _container(cluster: SlurmClusterConfig) -> Iterator[str]:
    if cluster.container_mounts is not None and cluster.container is None:
        yield (
            f"`cluster.container_mounts` ({cluster.container_mounts}) has no `cluster.container` (null) to mount into."
            " HINT: set `cluster.container`, or leave the mounts out."
        )


def _sbatch(cluster: SlurmClusterConfig) -> Iterator[str]:
    for key, value in cluster.sbatch.items():
        path = f"cluster.sbatch.{key}"
        bare = str(key).lstrip("-")
        name = _SHORT_SBATCH.get(bare, bare.replace("_", "-"))
        if name in OWNED_SBATCH:
            yield f"`{path}` ({value}) is an option of the launcher's own. HINT: leave it out; {OWNED_SBATCH[name]}."
        elif name == "gres" and cluster.gpu_request == "gres":
            yield (
                f"`{path}` ({value}) contradicts `cluster.gpu_request` (gres), which writes that option."
                " HINT: set `cluster.gpu_request=gpus-per-node` or `none`, or leave it out."
            )
        elif name in ("mem-per-cpu", "mem-per-gpu") and cluster.mem is not None:
            yield f"`{path}` ({value}) contradicts `cluster.mem` ({cluster.mem}). HINT: set `cluster.mem=null`."
        elif not re.fullmatch(r"[A-Za-z][A-Za-z0-9-]*", name) or str(key).startswith("-"):
            yield f"`{path}` is no name of an option. HINT: write `+cluster.sbatch.comment=x`, without dashes in front."
        elif isinstance(value, bool) and not value:
            yield f"`{path}` (false) says nothing. HINT: leave it out; `true` stands for an option without a value."
        elif not isinstance(value, str | int | float) or "\n" in str(value):
            yield f"`{path}` ({value!r}) is not one line of text. HINT: give a word or a number, or `true`."


def _srun(cluster: SlurmClusterConfig) -> Iterator[str]:
    for arg in cluster.srun_args:
        word = arg.partition("=")[0]
        bare = word.lstrip("-")
        name = bare if word.startswith("--") else _SHORT_SRUN.get(bare[:1], bare)
        if word.startswith("-") and name in OWNED_SRUN:
            yield f"`cluster.srun_args` ({word}) is decided by the launcher. HINT: leave it out."


def stopping_problems(config: Config) -> Iterator[str]:
    """Times that leave no time."""
    cluster = config.cluster
    if not isinstance(cluster, SlurmClusterConfig):
        return
    limit = time_limit(cluster) or ""
    limit_s, signal_s, wait_s = (
        parse_limit(limit),
        cluster.signal_s,
        config.checkpoint.stop_timeout_s,
    )
    if not limit_s:
        return  # there is none that is known here, or it is refused elsewhere
    if signal_s >= limit_s:
        yield (
            f"`cluster.signal_s` ({signal_s}) is not less than `cluster.time` ({limit}, {limit_s} s): the run"
            f" would be asked to stop as soon as it starts. HINT: set `cluster.signal_s={max(limit_s // 4, 1)}`, or a"
            " longer time."
        )
    elif wait_s >= signal_s:
        yield (
            f"`checkpoint.stop_timeout_s` ({wait_s:g}) is not less than `cluster.signal_s` ({signal_s}): the time limit"
            f" would end the run while it waits for the trainer. HINT: set `cluster.signal_s={int(2 * wait_s)}`, or a"
            " shorter wait."
        )
