"""Defaults for ``sbatch`` that a login shell exports (``SBATCH_PARTITION`` ...), as sites tell their users to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

OPTIONS = {
    "SBATCH_PARTITION": "partition",
    "SBATCH_ACCOUNT": "account",
    "SBATCH_QOS": "qos",
    "SBATCH_TIMELIMIT": "time",
    "SBATCH_CONSTRAINT": "constraint",
    "SBATCH_RESERVATION": "reservation",
    "SBATCH_EXCLUSIVE": "exclusive",
    "SBATCH_CLUSTERS": "clusters",
    "SLURM_CLUSTERS": "clusters",
    "SBATCH_WCKEY": "wckey",
    "SBATCH_NETWORK": "network",
    "SBATCH_ACCTG_FREQ": "acctg-freq",
    "SBATCH_PROFILE": "profile",
    "SBATCH_CORE_SPEC": "core-spec",
    "SBATCH_THREAD_SPEC": "thread-spec",
    "SBATCH_GRES_FLAGS": "gres-flags",
    "SBATCH_GPU_FREQ": "gpu-freq",
    "SBATCH_DELAY_BOOT": "delay-boot",
    "SBATCH_USE_MIN_NODES": "use-min-nodes",
    "SBATCH_SPREAD_JOB": "spread-job",
    "SBATCH_WAIT_ALL_NODES": "wait-all-nodes",
}
"""Variables that are used, with the option of ``sbatch`` that each stands for; of two for the same, the first wins."""

FLAGS = frozenset({"exclusive", "use-min-nodes", "spread-job"})
"""Options that need no value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoginDefaults:
    """What the environment of a submission says about the options of ``sbatch``."""

    options: Mapping[str, tuple[str, str | None]]
    """By option: the variable that it comes from, and its value; None for one without a value."""

    unused: tuple[str, ...]
    """Further ``SBATCH_*`` variables, for options that the launcher decides by itself."""

    enclosing_job: str | None = None
    """The job that the environment belongs to. Its variables say nothing about another job, so none is used."""


def read_login_defaults(environ: Mapping[str, str]) -> LoginDefaults:
    """The defaults in ``environ``; inside of a job (``salloc``, ``srun --pty``, an array's task) there are none."""
    job = environ.get("SLURM_JOB_ID") or environ.get("SLURM_JOBID")
    known = {name: environ[name] for name in OPTIONS if environ.get(name)}
    others = sorted(name for name in environ if name.startswith("SBATCH_") and name not in OPTIONS)
    if job:
        unused = [name for name in known if name.startswith("SBATCH_")]
        return LoginDefaults(options={}, unused=tuple(sorted([*unused, *others])), enclosing_job=job)
    options: dict[str, tuple[str, str | None]] = {}
    for name, value in known.items():
        option = OPTIONS[name]
        is_bare = option in FLAGS and value.lower() in ("1", "yes", "true", "exclusive")
        if option in FLAGS and not is_bare:
            # `SBATCH_EXCLUSIVE=user` and the like: nodes shared in some way.
            others.append(name)
        else:
            options.setdefault(option, (name, None if is_bare else value))
    return LoginDefaults(options=options, unused=tuple(sorted(others)))
