"""One rank's sampled data of one step, as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from launcher.trainers.grpo.loss import group_advantages
from launcher.trainers.grpo.rollout import Completion


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Sequences padded on the right. Positions count from the second token, as predictions do."""

    sequences: torch.Tensor
    """Sequences x length, token ids."""

    mask: torch.Tensor
    """Sequences x (length - 1): 1 where the token was sampled, 0 on prompt and padding."""

    engine_logprobs: torch.Tensor
    """Sequences x (length - 1): the engine's log-probabilities; 0 where the mask is."""

    advantages: torch.Tensor
    """One per sequence."""

    def split(self, size: int) -> list[Batch]:
        """Micro-batches of at most ``size`` sequences, in order."""
        return [
            Batch(
                sequences=self.sequences[start : start + size],
                mask=self.mask[start : start + size],
                engine_logprobs=self.engine_logprobs[start : start + size],
                advantages=self.advantages[start : start + size],
            )
            for start in range(0, len(self.sequences), size)
        ]


def make_batch(
    prompts: Sequence[Sequence[int]],
    groups: Sequence[Sequence[Completion]],
    rewards: Sequence[Sequence[float]],
    *,
    pad: int,
    device: torch.device,
) -> Batch:
    """Packs each prompt's group of completions and their rewards."""
    rows = [(prompt, completion) for prompt, group in zip(prompts, groups, strict=True) for completion in group]
    length = max(len(prompt) + len(completion.token_ids) for prompt, completion in rows)
    sequences = torch.full((len(rows), length), pad)
    mask = torch.zeros(len(rows), length - 1)
    logprobs = torch.zeros(len(rows), length - 1)
    for row, (prompt, completion) in enumerate(rows):
        start, end = len(prompt), len(prompt) + len(completion.token_ids)
        sequences[row, :end] = torch.tensor([*prompt, *completion.token_ids])
        mask[row, start - 1 : end - 1] = 1
        logprobs[row, start - 1 : end - 1] = torch.tensor(completion.logprobs)
    return Batch(
        sequences=sequences.to(device),
        mask=mask.to(device),
        engine_logprobs=logprobs.to(device),
        advantages=group_advantages(torch.tensor(rewards)).flatten().to(device),
    )
