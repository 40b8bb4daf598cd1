"""Events of the training: steps, checkpoints, published weights; and those of the fault tool's trainer."""

from __future__ import annotations

from dataclasses import field
from typing import Literal

from launcher.events.schema.base import Event, event_kind


@event_kind("step")
class StepFinished(Event):
    """An optimizer step is done. Written by the trainer (rank 0); any further number may stand beside these fields."""

    step: int
    """From 1; a step that is done again after a restart replaces the earlier one."""

    steps: int | None = None
    """Planned."""

    version: int | None = None
    """Version of the weights published after it."""

    reward: float | None = None
    """Mean over the step's completions."""

    loss: float | None = None
    tokens_per_s: float | None = None
    """Sampled tokens per second of the whole step."""

    sync_s: float | None = None
    """Seconds to publish the weights."""

    mismatch: float | None = None
    """Mean ``|logp_trainer - logp_engine|`` over the sampled tokens."""

    mismatch_max: float | None = None


@event_kind("check")
class CheckReported(Event):
    """A statement that the run tested about itself, such as the weights that an engine serves. Written by the
    trainer."""

    name: str = "check"
    ok: bool = False
    text: str = ""


@event_kind("checkpoint")
class CheckpointChanged(Event):
    """A checkpoint is being written, is complete (``end``) or could not be written. Written by the trainer."""

    state: Literal["begin", "end", "failed"]
    step: int | None = None
    path: str | None = None
    seconds: float | None = None
    bytes: int | None = None
    reason: str | None = None
    """Why it failed."""


@event_kind("resumed")
class CheckpointLoaded(Event):
    """Training goes on from a checkpoint. Written by the trainer."""

    step: int | None = None
    version: int | None = None
    path: str | None = None


@event_kind("published")
class WeightsPublished(Event):
    """Replicas committed a version of the weights. Written by the control service for the trainers' bridge; without a
    run, by the bridge into `BridgeSettings.journal`."""

    version: int
    replicas: list[int] = field(default_factory=list)
    """Replicas that serve it."""

    dropped: list[int] = field(default_factory=list)
    """Replicas of the layout that don't."""

    seconds: float | None = None
    bytes: int | None = None
    """Sent to all replicas together."""

    density: float | None = None
    """Part of the elements that had changed, between 0 and 1; None without delta encoding."""


@event_kind("adapter_published")
class AdapterPublished(WeightsPublished):
    """As ``published``, for a LoRA adapter."""

    adapter: str | None = None
    """Its name in the engines."""


@event_kind("moment")
class MomentReached(Event):
    """The trainer of the fault tool is at a moment that faults are injected at. Written by that trainer."""

    moment: str
    step: int | None = None


@event_kind("served")
class AnswersChecked(Event):
    """The fault tool's client compared the engines' answers with the published weights. Counts since its start."""

    step: int
    answers: int = 0
    lost: int = 0
    """Requests without an answer."""

    wrong: list[str] = field(default_factory=list)
    """One sentence for each answer of the wrong weights."""
