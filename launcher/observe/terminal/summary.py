"""The last block of a run: what happened and where everything is; written as ``summary.json`` too."""

from __future__ import annotations

import json
import logging
import shlex
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from launcher.common.codec import to_json
from launcher.common.jsonio import write_text
from launcher.common.text import command_line, counted, duration, number
from launcher.events.reader import load_state
from launcher.events.run_state import RunState
from launcher.events.schema import FailureReported
from launcher.events.serialize import event_fields
from launcher.slurm.states import JobState

logger = logging.getLogger(__name__)

AVERAGED_STEPS = 5
"""First and last reward are means of this many steps: one step's reward is a throw of dice."""

PICTURES = ("reward.png", "startup.png", "layout.png")


def summary(run_dir: Path, state: RunState | None = None, slurm: JobState | None = None) -> str:
    """The block to print when a run has ended; writes ``summary.json`` into the run directory.

    Args:
        state: What ``follow`` returned; read from the event log when None.
        slurm: how the job ended, if it was one.
    """
    state = load_state(run_dir) if state is None else state
    facts = gather(run_dir, state)
    try:
        # Through the codec: JSON has no nan and no infinity; they become null.
        write_text(run_dir / "summary.json", json.dumps(json.loads(to_json(facts)), indent=2) + "\n")
    except OSError as error:
        # Its content is printed all the same; a full disk may be what ended the run.
        logger.warning("summary.json cannot be written: %s", error)
    return "\n".join(_block(run_dir, state, facts, slurm))


def gather(run_dir: Path, state: RunState) -> dict[str, Any]:
    """The figures of a run, as in ``summary.json``; what was not reported is None. Times in seconds."""
    rewards = _values(state, "reward")
    window = min(AVERAGED_STEPS, max(len(rewards) // 2, 1))
    versions = {step.version for step in state.steps if step.version is not None}
    return {
        "outcome": state.outcome,
        "seconds": state.elapsed(state.last_at),
        "startup_s": state.startup_seconds(),
        "cluster": state.cluster,
        "job_id": state.job_id,
        "attempt": state.attempt,
        "nodes": state.nodes,
        "trainer_nodes": state.trainer_nodes,
        "inference_nodes": state.inference_nodes,
        "world_size": state.world_size,
        "replicas": state.replicas,
        "steps": len(state.steps),
        "steps_planned": state.steps_planned,
        "reward": {
            "first": _mean(rewards[:window]),
            "last": _mean(rewards[-window:]),
            "averaged_steps": window,
            "max": max(rewards, default=None),
        },
        "versions": {"published": len(versions), "last": max(versions, default=None)},
        "sync_s": _spread(_values(state, "sync_s")),
        "mismatch": {
            "mean": _mean(_values(state, "mismatch")),
            "max": max(_values(state, "mismatch_max") or _values(state, "mismatch"), default=None),
        },
        "restarts": dict(state.restarts),
        "lost_nodes": list(state.lost_nodes.values()),
        "checkpoint_step": state.checkpoint_step,
        "past_attempts": [asdict(past) for past in state.past_attempts],
        "tokens_per_s": _spread(_values(state, "tokens_per_s")),
        "checks": [event_fields(check) for check in state.checks],
        "failure": _failure_facts(state.failure) if state.failure is not None else None,
        "failed_after_it": [_failure_facts(failure) for failure in state.failures[1:]],
        "files": files(run_dir, state),
    }


def _failure_facts(failure: FailureReported) -> dict[str, Any]:
    code = failure.exit_code
    return {**event_fields(failure), "signal": -code if code is not None and code < 0 else None}


def files(run_dir: Path, state: RunState) -> dict[str, Any]:
    """Where everything is; only what exists."""
    attempt_dir = run_dir / "attempts" / str(state.attempt or 1)
    found: dict[str, Any] = {"run_dir": str(run_dir)}
    candidates = {
        "config": run_dir / "config.yaml",
        "events": attempt_dir / "events.jsonl",
        "logs": attempt_dir / "logs",
        "checkpoint": run_dir / "checkpoint" / "final",
    }
    found |= {name: str(path) for name, path in candidates.items() if path.exists()}
    found["pictures"] = [str(run_dir / name) for name in PICTURES if (run_dir / name).exists()]
    return found


def _block(run_dir: Path, state: RunState, facts: dict[str, Any], slurm: JobState | None) -> Iterator[str]:
    yield _headline(state, facts)
    yield from _figures(facts)
    for check in state.checks:
        yield _row("check", f"{'passed' if check.ok else 'FAILED'}: {check.name}: {check.text}")
    yield from _cause(run_dir, slurm)
    places = facts["files"]
    yield ""
    yield "Where everything is"
    yield _row("run", places["run_dir"])
    for name in ("logs", "checkpoint"):
        if name in places:
            yield _row(name, places[name])
    for label, picture in zip(["pictures", "", ""], places["pictures"], strict=False):
        yield _row(label, picture)
    commands = list(_next(state, places))
    if commands:
        yield ""
        yield "Next"
        yield from (f"  {command}" for command in commands)


def _headline(state: RunState, facts: dict[str, Any]) -> str:
    if state.outcome is not None:
        ending = state.ending()
        what = ending[0].upper() + ending[1:]
    elif state.began_at is None:
        what = "Nothing was recorded: no node of the run ever started"
    else:
        after = duration(facts["seconds"])
        what = f"Ended without a final event after {after}: killed from outside, or node 0 was lost"
    steps = f"{facts['steps']} of {state.steps_planned}" if state.steps_planned else str(facts["steps"])
    parts = [f"{steps} steps"]
    if state.nodes is not None:
        parts.append(counted(state.nodes, "node"))
    if state.cluster is not None:
        parts.append(state.cluster + (f" job {state.job_id}" if state.job_id else ""))
    if state.attempt is not None and state.attempt > 1:
        parts.append(f"attempt {state.attempt}")
    return f"{what} ({', '.join(parts)})"


def _figures(facts: dict[str, Any]) -> Iterator[str]:
    reward, versions, sync = facts["reward"], facts["versions"], facts["sync_s"]
    if reward["first"] is not None:
        window = reward["averaged_steps"]
        note = f"   (means of the first and the last {window} steps)" if window > 1 else ""
        yield _row("reward", f"{reward['first']:.3f} -> {reward['last']:.3f}{note}")
    if versions["published"]:
        text = f"{versions['published']} published, the last is {versions['last']}"
        if sync["mean"] is not None:
            text += f"; sync {duration(sync['mean'])} on average, {duration(sync['max'])} at most"
        yield _row("versions", text)
    mismatch = facts["mismatch"]
    if mismatch["mean"] is not None:
        figures = f"{number(mismatch['mean'])} on average, {number(mismatch['max'])} at most"
        yield _row("mismatch", f"{figures}   (|logp of trainer - logp of engine| of sampled tokens)")
    if facts["tokens_per_s"]["mean"] is not None:
        yield _row("speed", f"{number(facts['tokens_per_s']['mean'])} tokens/s on average")
    restarts = ", ".join(f"{counted(count, what)}" for what, count in facts["restarts"].items())
    lost = f"; lost nodes {', '.join(facts['lost_nodes'])}" if facts["lost_nodes"] else ""
    if restarts or lost:
        yield _row("restarts", (restarts or "none") + lost)
    for past in facts["past_attempts"]:
        at = f" at step {past['step']}" if past["step"] is not None else ""
        yield _row(f"attempt {past['attempt']}", f"{past['outcome']}{at}")
    if facts["startup_s"] is not None:
        yield _row("start-up", f"{duration(facts['startup_s'])} from submission to the first step")


def _cause(run_dir: Path, slurm: JobState | None) -> Iterator[str]:
    """What ``launcher why`` prints about the last attempt; nothing if it was ended on purpose."""
    # Imported here, because it is slow and needed only at the end.
    from launcher.events.failure_kinds import FailureKind
    from launcher.observe.root_cause.diagnosis import diagnose
    from launcher.observe.root_cause.render import cause_block

    explained = diagnose(run_dir, lambda _: slurm).last
    if explained is not None and explained.cause is not None and explained.cause.kind is not FailureKind.CANCELLED:
        yield from cause_block(explained)


def _next(state: RunState, places: dict[str, Any]) -> Iterator[str]:
    if state.failure is not None and state.failure.log is not None:
        yield shlex.join(["less", "+G", state.failure.log])
    elif state.outcome != "completed" and "logs" in places:
        yield f"tail -n 20 {shlex.quote(places['logs'])}/*.log"
    if "checkpoint" in places:
        path = places["checkpoint"]
        yield shlex.join(["python", "-m", "vllm.entrypoints.openai.api_server", "--model", path])
        yield command_line(f"model.path={path}")


def _row(label: str, text: str) -> str:
    return f"  {label:<12}{text}"


def _values(state: RunState, name: str) -> list[float]:
    return [value for step in state.steps if (value := getattr(step, name)) is not None]


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _spread(values: list[float]) -> dict[str, float | None]:
    return {"mean": _mean(values), "max": max(values, default=None)}
