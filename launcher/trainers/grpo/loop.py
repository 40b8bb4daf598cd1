"""The reference trainer's run, from the first weights to the check that the engines serve the trainer's model."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from launcher import bridge
from launcher.checkpoint import CheckpointError
from launcher.common.env import LAUNCHER_MODEL_PATH
from launcher.common.errors import LauncherError, TransferError
from launcher.config.schema import Config
from launcher.control import emit as events
from launcher.events.schema import CheckReported
from launcher.inference.client import api_key, inference_urls
from launcher.inference.client import engines as live_engines
from launcher.stopping import should_stop
from launcher.trainers.grpo.model import TrainerRank, token_logits, wire_copy
from launcher.trainers.grpo.rollout import Completion, EngineLost, Engines
from launcher.trainers.grpo.trainer import StepReport, Trainer

CHECK_PROMPTS = 16
FIRST_CHECK_PROMPTS = 4
AVERAGED_STEPS = 10


def train(config: Config, run_dir: Path) -> None:
    """Trains, publishes every version, saves the last weights, and checks that the engines serve them.

    Every trainer rank calls it. It ends the process, with exit code 0, when all is well.

    Raises:
        ConfigError: a setting is wrong, or does not fit the number of ranks.
        RolloutError: an engine did not answer.
        BridgeError: weights did not arrive.
        CheckError: at the end an engine does not serve the trainer's weights.
    """
    worker = TrainerRank.from_environment(config.layout.device)
    with phase("model", worker):
        worker.join()
        trainer = Trainer.create(config, worker, Path(os.environ[LAUNCHER_MODEL_PATH]))
        done = trainer.checkpoints.restore()
    weights = bridge.connect()
    # The engines must serve what is sampled from: the first weights, or those that were restored.
    weights.publish(trainer.model, version=done)
    check_meaning(trainer, weights)
    # The ranks start with different engines, so that their first requests do not all meet at one.
    with Engines(
        inference_urls(),
        api_key(),
        timeout_s=trainer.options.request_timeout_s,
        live=inference_urls,
        first=worker.rank,
    ) as engines:
        with phase("first answers", worker):
            untrained = ask(trainer, engines) if worker.is_main else {}
        rewards: deque[float] = deque(maxlen=AVERAGED_STEPS)
        for step in range(done + 1, config.trainer.steps + 1):
            with phase("first step", worker, when=step == done + 1):
                report = trainer.step(step, engines, weights)
            rewards.append(report.reward)
            if worker.is_main:
                show(step, config.trainer.steps, report, sum(rewards) / len(rewards))
            stop = step < config.trainer.steps and should_stop()
            if stop:
                # Before the engines end, as they may from here on.
                weights.close()
            save(trainer, step, stop=stop)
            if stop:
                worker.end()
        finish(trainer, engines, untrained, run_dir / "checkpoint" / "final")
    weights.close()
    worker.end()


def check_meaning(trainer: Trainer, weights: bridge.Bridge) -> None:
    """Once the engines have the trainer's weights: whether they compute with them what the trainer does. Every rank
    calls it; a difference is reported, and the run goes on."""
    try:
        result = weights.check(trainer.model, trainer.check_prompts(FIRST_CHECK_PROMPTS), api_key=api_key())
    except TransferError as error:
        # An engine that goes away now is the run's concern, not the check's.
        print(f"check after the first publish: not made: {error}", flush=True)
        return
    if trainer.worker.is_main:
        events.emit(CheckReported(name="engines compute what the trainer does", ok=result.ok, text=result.text))
        print(f"check after the first publish: {'ok' if result.ok else 'FAILED'}: {result.text}", flush=True)


def save(trainer: Trainer, step: int, *, stop: bool) -> None:
    """Writes a checkpoint if one is due, or if the run stops after this step.

    Raises:
        CheckpointError: the run stops, and what was done since the last checkpoint could not be saved.
    """
    if not (stop or trainer.checkpoints.is_due(step)):
        return
    try:
        trainer.checkpoints.save(step)
    except CheckpointError as error:
        if stop:
            raise
        # A full disk may be emptied before the next one is due; until then nothing is lost.
        print(f"{error} The run goes on without it.", flush=True)


def show(step: int, steps: int, report: StepReport, average: float) -> None:
    """One event and one line for a finished step."""
    events.emit("step", step=step, steps=steps, reward_average=average, **asdict(report))
    print(
        f"step {step}/{steps}  reward {report.reward:.3f} (mean of {AVERAGED_STEPS}: {average:.3f})  "
        f"loss {report.loss:+.4g}  {report.tokens_per_s:.0f} tokens/s  "
        f"mismatch {report.mismatch:.2g} (max {report.mismatch_max:.2g})  "
        f"version {report.version} in {report.sync_s:.3f} s  step {report.seconds:.2f} s",
        flush=True,
    )


def ask(trainer: Trainer, engines: Engines) -> dict[int, list[Completion]]:
    """Each engine's greedy answers to the check's prompts, by replica; one that goes away meanwhile is left out."""
    prompts = trainer.check_prompts(CHECK_PROMPTS)
    answers = {}
    for replica, url in live_engines().items():
        try:
            answers[replica] = engines.greedy(url, prompts, max_tokens=trainer.config.trainer.max_new_tokens, top=TOP)
        except EngineLost as error:
            print(f"inference-{replica} is not asked: {error}", flush=True)
    return answers


def finish(trainer: Trainer, engines: Engines, untrained: Mapping[int, Sequence[Completion]], path: Path) -> None:
    """Saves the last weights in ``path`` and compares what each engine serves with them.

    Every rank calls it, because collecting the weights takes all of them; rank 0 does the rest.

    Raises:
        CheckError: an engine differs by more than rounding explains.
    """
    dtype = trainer.config.model.dtype
    model = wire_copy(trainer.model, trainer.worker, dtype)
    if model is None:
        return
    model.save_pretrained(path)
    trainer.tokenizer.save_pretrained(path)
    print(f"saved the last weights ({dtype}) in {path}", flush=True)
    allowed = tolerance(dtype, trainer.worker.device.type)
    prompts = trainer.check_prompts(CHECK_PROMPTS)
    failed: list[str] = []
    urls = live_engines()
    checked = ask(trainer, engines)
    for index, answers in checked.items():
        url = urls.get(index, "its URL")
        result = compare(model, prompts, answers)
        moved = movement(untrained.get(index, ()), answers) if index in untrained else 0.0
        text = f"{result.text()} (tolerance {allowed}; training moved them by up to {moved:.2f})"
        ok = result.within(allowed)
        events.emit(
            CheckReported(
                name=f"inference-{index} serves the trainer's weights",
                ok=ok,
                text=text,
                extra={"url": url, "tolerance": allowed, "movement": moved, **asdict(result)},
            )
        )
        print(f"check of inference-{index}: {'ok' if ok else 'FAILED'}: {text}", flush=True)
        if not ok:
            failed.append(f"inference-{index} at {url} does not serve the trainer's weights: {text}.")
    if not checked:
        failed.append("No engine was there to be checked.")
    if failed:
        raise CheckError("\n".join(failed))


@contextmanager
def phase(name: str, worker: TrainerRank, *, when: bool = True) -> Iterator[None]:
    """Marks a start-up phase of rank 0; the other ranks say nothing, so that events do not grow with the world."""
    if not (worker.is_main and when):
        yield
        return
    with events.phase(name, "trainer-0000"):
        yield


TOP = 5
"""Likeliest tokens compared at every position: a greedy token alone, at a log-probability near 0, hardly differs."""

TOLERANCES = {"float32": 1e-3, "tf32": 0.02, "float16": 0.05, "bfloat16": 0.25}
"""Largest allowed difference of a log-probability, by the type both sides compute in.

Two correct programs round in different orders, and each rounds its logits to the type: at magnitudes of 8 to 16 a
bfloat16 logit has steps of 1/16, so a difference of two or three steps is rounding and not an error.
"""


def tolerance(dtype: str, device: str) -> float:
    """The tolerance for a model of ``dtype`` on ``device``: on GPUs attention kernels multiply float32 in tf32."""
    return TOLERANCES["tf32" if dtype == "float32" and device == "cuda" else dtype]


class CheckError(LauncherError):
    """An engine does not serve the trainer's weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """How one engine's greedy answers relate to the trainer's model; differences are of log-probabilities."""

    tokens: int
    """Generated tokens compared."""

    equal: int
    """Tokens that are the trainer's likeliest, too."""

    gap_max: float
    """Where they are not: by how much the trainer's likeliest token beats the engine's, at most. 0 if all are equal."""

    difference_mean: float
    """Over the :data:`TOP` likeliest tokens of every position."""

    difference_max: float

    def within(self, tolerance: float) -> bool:
        """Whether rounding explains everything.

        A greedy token may differ only at a tie, that is where the trainer's own model prefers its token by no more
        than ``tolerance``. The trainer is asked about the engine's tokens, so one tie does not excuse what follows it.
        """
        return self.difference_max <= tolerance and self.gap_max <= tolerance

    def text(self) -> str:
        """One line for people."""
        ties = f", the others ties within {self.gap_max:.2g}" if self.equal < self.tokens else ""
        return (
            f"{self.equal} of {self.tokens} greedy tokens equal{ties}; "
            f"log-probabilities differ by {self.difference_mean:.2g} on average, {self.difference_max:.2g} at most"
        )


def compare(model: torch.nn.Module, prompts: Sequence[Sequence[int]], answers: Sequence[Completion]) -> Comparison:
    """Asks ``model`` about the engine's greedy ``answers``, token by token.

    Args:
        model: the trainer's weights in the wire type; see :func:`launcher.trainers.grpo.model.wire_copy`.
        answers: one per prompt, with the likeliest tokens at each position.
    """
    tokens = equal = 0
    gap_max = 0.0
    differences: list[float] = []
    for prompt, answer in zip(prompts, answers, strict=True):
        # One sequence at a time: padding would change the shapes that kernels round by.
        sequence = torch.tensor([[*prompt, *answer.token_ids]])
        with torch.no_grad():
            logprobs = token_logits(model, sequence)[0, len(prompt) - 1 :].log_softmax(-1)
        for own, token, top in zip(logprobs, answer.token_ids, answer.top, strict=True):
            tokens += 1
            gap = float(own.max() - own[token])
            equal += gap == 0
            gap_max = max(gap_max, gap)
            differences += [abs(float(own[other]) - value) for other, value in top.items()]
    return Comparison(
        tokens=tokens,
        equal=equal,
        gap_max=gap_max,
        difference_mean=sum(differences) / len(differences),
        difference_max=max(differences),
    )


def movement(before: Sequence[Completion], after: Sequence[Completion]) -> float:
    """Largest change of a first token's log-probability between two sets of answers to the same prompts.

    It says what the comparison would have shown had the engine still served the older weights.
    """
    changes = [
        abs(value - old.top[0][token])
        for old, new in zip(before, after, strict=True)
        for token, value in new.top[0].items()
        if token in old.top[0]
    ]
    return max(changes, default=0.0)
