"""Starts what is missing of a sweep: checks all runs, looks up which are done or under way, and submits the rest."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from launcher.common.errors import ConfigError
from launcher.common.jsonio import write_json
from launcher.common.text import command_line
from launcher.config.metric import Metric
from launcher.config.schema import Config, SlurmClusterConfig
from launcher.slurm.site import max_array_size
from launcher.submit.prepare import Prepared, ready
from launcher.submit.resources import chosen_cluster, is_heterogeneous
from launcher.sweep.candidates import Combination, RunResult, SweepRequest, grouped
from launcher.sweep.ledger import ABOUT, Ledger
from launcher.sweep.start import RunStarter, concurrency_after, find_lost_jobs
from launcher.sweep.status import Run, Status, counted, run_statuses
from launcher.sweep.wait import outcome_of, run_here, wait_for

LOCK_TIMEOUT_S = 120.0


def launch(request: SweepRequest, batch: Sequence[Combination]) -> list[RunResult]:
    """Starts the runs of a batch that are neither done nor under way; waits for them with ``cluster.wait``.

    Returns:
        The result of each run; runs that are not waited for count as successful.

    Raises:
        ConfigError: some run cannot start; none was.
        SubmissionError: SLURM refused a job that its test had accepted. What was submitted before goes on.
    """
    if not batch:
        return []
    config = batch[0].config
    batch = _ready(request, batch)
    ledger = Ledger(request.directory)
    metric = Metric.parse(config.sweep.metric)
    with ledger.lock(LOCK_TIMEOUT_S):
        find_lost_jobs(ledger, metric)
        _enter(ledger, batch)
        write_json(request.directory / ABOUT, {"metric": config.sweep.metric})
        before = {run.entry.identity: run for run in run_statuses(ledger, metric, is_locked=False)}
        todo = [candidate for candidate in _distinct(batch) if not _is_there(before[candidate.identity])]
        if config.cluster.kind == "local":
            print(_plan_text(batch, before, todo), flush=True)
            run_here(ledger, todo, metric)
        else:
            try:
                _submit(ledger, todo, before, config)
            except BaseException:
                print(_continue_hint(request.directory), file=sys.stderr)
                raise
            print(_plan_text(batch, before, todo), flush=True)
    print(f"sweep directory {request.directory}", flush=True)
    if config.cluster.kind != "local" and not config.cluster.wait:
        lines = [command_line("sweep", action, request.directory) for action in ("status", "cancel")]
        print("next:", *lines, sep="\n  ")
        return [RunResult() for _ in batch]
    if config.cluster.kind != "local":
        wait_for(ledger, metric, {candidate.identity for candidate in batch})
    after = {run.entry.identity: run for run in run_statuses(ledger, metric)}
    return [outcome_of(after[candidate.identity], metric) for candidate in batch]


def _ready(request: SweepRequest, batch: Sequence[Combination]) -> list[Combination]:
    """The batch as it is submitted: each run with what its cluster needs.

    Raises:
        ConfigError: some run cannot start.
    """
    config = batch[0].config
    found: dict[str, list[int]] = {}
    checked: dict[str, tuple[Prepared, list[str]]] = {}
    candidates: list[Combination] = []
    for number, candidate in enumerate(batch):
        # The cluster checks once for all runs that request the same.
        key = resources(candidate.config)
        if key not in checked:
            result, _, problems = ready(candidate.config)
            checked[key] = result, problems
            for note in result.notes:
                print(f"launcher: {note}", flush=True)
        result, problems = checked[key]
        for text in problems:
            found.setdefault(text, []).append(number)
        preflight = replace(candidate.config.preflight, bad_node_dir=result.config.preflight.bad_node_dir)
        candidates.append(
            replace(candidate, config=replace(candidate.config, cluster=result.config.cluster, preflight=preflight))
        )
    texts = grouped(found, [candidate.overrides for candidate in batch])
    if len({candidate.config.cluster.kind for candidate in batch}) > 1:
        texts.append("A sweep over `cluster` runs partly here and partly on SLURM. HINT: make it two sweeps.")
    if config.sweep.array:
        texts += _array_problems(config)
    if request.is_optimising:
        texts += _optimising_problems(config)
    if texts:
        raise ConfigError(texts)
    return candidates


def _array_problems(config: Config) -> list[str]:
    if not isinstance(config.cluster, SlurmClusterConfig):
        return ["`sweep.array` (true) needs SLURM. HINT: add `+cluster=slurm`, or leave it out."]
    if is_heterogeneous(config.cluster):
        return [
            "`sweep.array` (true) contradicts `cluster.trainer` and `cluster.inference`: SLURM takes no heterogeneous"
            " job in an array. HINT: leave `sweep.array` out; `sweep.parallel` works without it."
        ]
    return []


def _optimising_problems(config: Config) -> list[str]:
    texts = []
    if config.cluster.kind != "local" and not config.cluster.wait:
        texts.append(
            "`cluster.wait` (false) contradicts `hydra/sweeper`, which chooses the next runs by what the last ones"
            " came to. HINT: set `cluster.wait=true`."
        )
    if config.sweep.zip:
        texts.append(
            f"`sweep.zip` ({', '.join(config.sweep.zip)}) is of no use to this `hydra/sweeper`. HINT: leave it out."
        )
    return texts


def resources(config: Config) -> str:
    """What a run wants of its cluster; equal for runs that can share a job array."""
    return json.dumps([asdict(config.cluster), asdict(config.layout)], default=str)


def _enter(ledger: Ledger, batch: Sequence[Combination]) -> None:
    known = ledger.entries()
    new = [candidate for candidate in _distinct(batch) if candidate.identity not in known]
    records = [{"record": "run", "run": candidate.identity, "overrides": candidate.overrides} for candidate in new]
    if records:
        ledger.append(*records)


def _is_there(run: Run) -> bool:
    return run.status is Status.DONE or run.status.is_active


def _submit(ledger: Ledger, todo: Sequence[Combination], before: dict[str, Run], config: Config) -> None:
    active = [run.entry.job_id for run in before.values() if run.status.is_active and run.entry.job_id]
    limit = concurrency_after(active, config.sweep.parallel)
    starter = RunStarter(ledger)
    if config.sweep.array and len(todo) > 1:
        groups = _groups(todo, max_array_size(chosen_cluster(config)))
    else:
        groups = [[candidate] for candidate in todo]
    for group in groups:
        if len(group) == 1:
            _, job = starter.start(group[0], limit.dependency())
            limit.add(str(job.job_id))
            print(f"submitted job {job.job_id}: {' '.join(group[0].overrides)}", flush=True)
        else:
            job_ids = starter.start_array(group, config.sweep.parallel, limit.dependency_of_all())
            limit.add(*job_ids)
            print(f"submitted job array {job_ids[0].partition('_')[0]}: {len(group)} runs", flush=True)


def _continue_hint(directory: Path) -> str:
    return (
        "launcher: not all runs were submitted. The same command submits the rest;"
        f" `{command_line('sweep', 'cancel', directory)}` ends those that were."
    )


def _groups(todo: Sequence[Combination], largest: int) -> list[list[Combination]]:
    """Runs that one array can hold: they request the same, and are not more than the site allows (``largest``)."""
    groups: dict[str, list[Combination]] = {}
    for candidate in todo:
        groups.setdefault(resources(candidate.config), []).append(candidate)
    return [group[i : i + largest] for group in groups.values() for i in range(0, len(group), largest)]


def _distinct(batch: Sequence[Combination]) -> list[Combination]:
    return list({candidate.identity: candidate for candidate in batch}.values())


def _plan_text(batch: Sequence[Combination], before: dict[str, Run], todo: Sequence[Combination]) -> str:
    """``12 runs: 7 done, 2 running, 3 submitted``."""
    runs = _distinct(batch)
    there = [before[candidate.identity].status for candidate in runs if _is_there(before[candidate.identity])]
    word = "submitted" if runs[0].config.cluster.kind != "local" else "to do"
    again = sum(before[candidate.identity].status is not Status.MISSING for candidate in todo)
    new = [f"{len(todo)} {word}" + (f" ({again} of them again)" if again else "")] if todo else []
    same = len(batch) - len(runs)
    note = f" ({same} more combinations are the same as one of these)" if same else ""
    return f"{len(runs)} run{'s' if len(runs) > 1 else ''}: {counted(there, new)}{note}"
