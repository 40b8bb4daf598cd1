"""One optimizer step on one batch, over all ranks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist

from launcher.trainers.grpo.batch import Batch
from launcher.trainers.grpo.loss import entropy, policy_loss
from launcher.trainers.grpo.model import TrainerRank, compute_dtype, token_logits, token_logprobs

MAX_GRADIENT_NORM = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyUpdate:
    """What one optimizer step reports; the same on all ranks."""

    loss: float
    grad_norm: float
    mismatch: float
    """Mean of abs(trainer's - engine's log-probability) over the sampled tokens, before the weights changed."""

    mismatch_max: float
    """Largest such difference."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Updater:
    """Does optimizer steps."""

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    worker: TrainerRank
    dtype: str
    """The wire type; see :func:`launcher.trainers.grpo.model.compute_dtype`."""

    temperature: float
    micro_batch: int
    """Most sequences in one forward pass."""

    epochs: int
    """Optimizer steps on each batch. From the second one on the clipped ratio differs from 1."""

    entropy_coef: float
    """Weight of the entropy bonus."""

    def __call__(self, batch: Batch) -> PolicyUpdate:
        """Every rank calls it with as many sequences as the others; afterwards the new weights are in the model."""
        micro_batches = batch.split(self.micro_batch)
        (tokens,) = self.worker.reduce([float(batch.mask.sum())])
        old: list[torch.Tensor] = []
        loss = difference = largest = norm = 0.0
        for epoch in range(self.epochs):
            self.optimizer.zero_grad()
            for index, part in enumerate(micro_batches):
                with compute_dtype(self.worker, self.dtype):
                    logits = token_logits(self.model, part.sequences)
                logprobs = token_logprobs(logits, part.sequences, temperature=self.temperature)
                if epoch == 0:
                    old.append(logprobs.detach())
                    # The engine reports log-probabilities at temperature 1.
                    plain = token_logprobs(logits.detach(), part.sequences)
                    gap = (plain - part.engine_logprobs).abs() * part.mask
                    difference += float(gap.sum())
                    largest = max(largest, float(gap.max()))
                part_loss = policy_loss(logprobs, old[index], part.advantages, part.mask, tokens=tokens)
                if self.entropy_coef:
                    part_loss = part_loss - self.entropy_coef * (entropy(logits) * part.mask).sum() / tokens
                # FSDP averages gradients over the ranks; each rank's loss is already its share of one mean.
                (part_loss * self.worker.world_size).backward()  # type: ignore[no-untyped-call]
                loss += float(part_loss.detach()) / self.epochs
            norm = self._clip()
            self.optimizer.step()
        loss, difference = self.worker.reduce([loss, difference])
        (largest,) = self.worker.reduce([largest], dist.ReduceOp.MAX)
        return PolicyUpdate(loss=loss, grad_norm=norm, mismatch=difference / tokens, mismatch_max=largest)

    def _clip(self) -> float:
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), MAX_GRADIENT_NORM)
        return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
