"""A soak: one long run of the reference trainer under faults at random, with training going on."""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from launcher.common.codec import to_builtins
from launcher.common.errors import LauncherError
from launcher.common.jsonio import write_json
from launcher.events.schema import AttemptFinished, Event, StepFinished
from launcher.testing.chaos.actions import FaultInjector
from launcher.testing.chaos.cases import CASES, Case
from launcher.testing.chaos.cluster import ChaosCluster
from launcher.testing.chaos.judge import is_noticed
from launcher.testing.chaos.observe import ObservedRun, lost_steps
from launcher.testing.chaos.processes import ProcessMemory
from launcher.testing.chaos.run_case import find_leaks, start

SPARES = 2
EVERY_STEPS = 2
LONG = (
    "trainer.steps=1000000",
    "trainer.prompts_per_step=16",
    "layout.nodes=4",
    "layout.inference_nodes=2",
    f"layout.spares={SPARES}",
    "layout.gpus_per_node=1",
    "cluster.wait=true",
    "cluster.exclusive=true",
    f"checkpoint.every_steps={EVERY_STEPS}",
    "preflight.bad_node_ttl_s=0",
    *(
        f"restart.{name}=1000000"
        for name in ("max_engine_restarts", "max_trainer_restarts", "max_failures", "max_preemptions")
    ),
    "restart.max_engine_backoff_s=2",
)
"""Two trainer nodes, two engines, and spares; nothing is started too often."""

WEIGHTS = {
    **{f"{action} engine {what}": 3 for action in ("kill", "stop") for what in ("server", "core")},
    **{f"{action} trainer {what}": 3 for action in ("kill", "stop") for what in ("rank", "rank 0")},
    **{f"{action} {what} agent": 1 for action in ("kill", "stop") for what in ("trainer", "inference")},
    **{"kill agent of node 0": 1, "USR2": 2, "scontrol requeue": 1},
}
"""How often each fault comes, by case."""

START_TIMEOUT_S = 400.0
BACK_S = 240.0
"""Training must continue within this: the queue, imports and engines that start are slow on few cores."""

PAUSE_S = (3.0, 20.0)
"""From the first step after a fault to the next fault."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault, and what followed."""

    name: str
    at: float
    """Seconds since the first step."""

    step: int
    """The last one that was finished before."""

    noticed_s: float | None
    back_s: float | None
    """Until the next finished step."""


@dataclass(slots=True, kw_only=True)
class SoakResult:
    """What a soak was like."""

    minutes: float = 0.0
    faults: list[Fault] = field(default_factory=list)
    attempts: int = 0
    steps: int = 0
    """The last step that was finished."""

    redone: int = 0
    """Steps that were done again, because they came after the last checkpoint."""

    rewards: tuple[float, float] = (0.0, 0.0)
    """Means of the first and of the last ten steps."""

    fall: float = 0.0
    """By how much the mean of ten steps after a restart was lower than before it, at most."""

    memory: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Of each agent and shim that ran for some time: MiB, early and late."""

    leaks: list[str] = field(default_factory=list)
    surprises: list[str] = field(default_factory=list)
    run_dir: str = ""


def soak(minutes: float, seed: int, overrides: Sequence[str], folder: Path, cluster: ChaosCluster) -> SoakResult:
    """Injects faults into one run until the time is over, then cancels it.

    Raises:
        LauncherError: the run did not start.
    """
    rng = random.Random(seed)
    result = SoakResult()
    launched, run_dir, job_id = start("soak", [*LONG, *overrides], folder / "runs", folder / "soak.txt", cluster)
    result.run_dir = str(run_dir)
    observed = ObservedRun(run_dir)
    memory = ProcessMemory(run_dir)

    def is_over() -> bool:
        memory.sample()
        return launched.poll() is not None

    injectors: list[FaultInjector] = []
    try:
        first = observed.wait(lambda e: isinstance(e, StepFinished), is_over, START_TIMEOUT_S)
        if first is None:
            raise LauncherError(f"the soak did not reach its first step: {folder / 'soak.txt'}")
        while time.time() - first.time < 60 * minutes and not is_over():
            observed.wait(lambda e: False, is_over, rng.uniform(*PAUSE_S))
            case = _draw_case(rng, observed)
            injector = FaultInjector(
                case=case, cluster=cluster, observed=observed, job_id=job_id, go=folder / "soak.go"
            )
            injectors.append(injector)
            result.faults.append(_inject(injector, observed, is_over, first.time))
            print(f"{_report_line(result.faults[-1])}", flush=True)
            if result.faults[-1].back_s is None:
                result.surprises.append(f"no step for {BACK_S:g} s after: {case.name}")
                break
        if launched.poll() is not None:
            result.surprises.append(f"the run ended by itself, with {launched.returncode}")
        result.minutes = (time.time() - first.time) / 60
    finally:
        cluster.run("scancel", job_id, check=False)
        try:
            launched.wait(60)
        except subprocess.TimeoutExpired:
            result.surprises.append("it did not end within 60 s after its cancellation")
            launched.kill()
        for injector in injectors:
            injector.undo()
    observed.read()
    result.leaks = find_leaks(cluster, run_dir, observed.hostnames())
    result.memory = memory.grown()
    evaluate_soak(result, observed.events)
    write_json(folder / "soak.json", to_builtins(result))
    return result


def evaluate_soak(result: SoakResult, events: Mapping[int, Sequence[Event]]) -> None:
    """Fills in what follows from the events, by attempt, and where it is not as it should be."""
    every = [(number, event) for number in sorted(events) for event in events[number]]
    steps = [(number, event) for number, event in every if isinstance(event, StepFinished)]
    result.attempts = max(events, default=0)
    result.steps = max((step.step for _, step in steps), default=0)
    result.redone = len(steps) - len({step.step for _, step in steps})
    result.surprises += lost_steps(event for _, event in every)
    rewards = [step.reward or 0.0 for _, step in steps]
    result.rewards = (_mean(rewards[:10]), _mean(rewards[-10:]))
    # Where a later attempt, or later trainers of the same one, went on from a checkpoint.
    cuts = [
        index
        for index, ((attempt, step), (before, last)) in enumerate(zip(steps[1:], steps, strict=False), 1)
        if step.step <= last.step or attempt > before
    ]
    falls = [
        _mean(rewards[cut - 10 : cut]) - _mean(rewards[cut : cut + 10]) for cut in cuts if 10 <= cut < len(steps) - 9
    ]
    result.fall = max([0.0, *falls])
    if result.leaks:
        result.surprises.append(f"left behind: {len(result.leaks)}")


def report(result: SoakResult) -> str:
    """What a person reads at the end."""
    backs = sorted(fault.back_s for fault in result.faults if fault.back_s is not None)
    noticed = sorted(fault.noticed_s for fault in result.faults if fault.noticed_s is not None)
    growth = max((late - early for early, late in result.memory.values()), default=0.0)
    lines = [
        f"{result.minutes:.0f} minutes, {len(result.faults)} faults, {result.attempts} attempts, {result.steps} steps"
        f" ({result.redone} done again after a restart)",
        f"reward {result.rewards[0]:.3f} -> {result.rewards[1]:.3f}; after a restart at most {result.fall:.3f} lower",
        f"agents and shims: {len(result.memory)} measured, at most {growth:+.1f} MiB from early to late",
        f"left behind: {len(result.leaks)}",
    ]
    if noticed and backs:
        lines.insert(1, f"noticed after {_middle(noticed)}; the next step after {_middle(backs)}")
    return "\n".join([*lines, f"surprises: {'; '.join(result.surprises) or 'none'}"])


def _draw_case(rng: random.Random, observed: ObservedRun) -> Case:
    cases = {case.name: case for case in CASES if case.name in WEIGHTS}
    used = len(observed.state.spares)
    possible = [name for name, case in cases.items() if used < SPARES or "layout.spares=1" not in case.shape]
    return cases[rng.choices(possible, [WEIGHTS[name] for name in possible])[0]]


def _inject(injector: FaultInjector, observed: ObservedRun, is_over: Callable[[], bool], begin: float) -> Fault:
    steps = [event.step for event in observed.all_events() if isinstance(event, StepFinished)]
    try:
        at = injector.inject()
    except LauncherError as error:
        # The last fault's target may be restarting just now.
        print(f"{injector.case.name}: {error}", flush=True)
        at = time.time()
    noticed = observed.wait(lambda e: is_noticed(e, at) and not isinstance(e, AttemptFinished), is_over, 60)
    seen = noticed.time if noticed is not None else at
    back = observed.wait(lambda e: isinstance(e, StepFinished) and e.time > seen, is_over, BACK_S)
    return Fault(
        name=injector.case.name,
        at=at - begin,
        step=max(steps, default=0),
        noticed_s=None if noticed is None else max(0.0, noticed.time - at),
        back_s=None if back is None else back.time - at,
    )


def _report_line(fault: Fault) -> str:
    seconds = ["-" if value is None else f"{value:.1f} s" for value in (fault.noticed_s, fault.back_s)]
    return f"{fault.at / 60:6.1f} min  step {fault.step:4}  {fault.name}: noticed {seconds[0]}, next step {seconds[1]}"


def _middle(values: Sequence[float]) -> str:
    return f"{values[len(values) // 2]:.1f} s (median; at most {values[-1]:.1f} s)"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
