"""Compares what an engine serves with the trainer's own model: greedy tokens and log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from launcher.common.errors import LauncherError
from launcher.trainers.grpo.model import token_logits
from launcher.trainers.grpo.rollout import Completion

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
