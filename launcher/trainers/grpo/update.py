"""One optimizer step over all ranks: the step's data as tensors, advantages and the policy loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from launcher.trainers.grpo.model import TrainerRank, compute_dtype, token_logits, token_logprobs
from launcher.trainers.grpo.rollout import Completion

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


CLIP = 0.2
"""Half width of the ratio's trust region; PPO's and GRPO's usual epsilon."""


def group_advantages(rewards: torch.Tensor, *, epsilon: float = 1e-4) -> torch.Tensor:
    """How much better each answer is than the others to the same prompt.

    For the rewards r_1..r_G of one prompt's answers: A_i = (r_i - mean(r)) / (std(r) + epsilon), with the population's
    standard deviation. A group whose answers are all right or all wrong gets 0 and teaches nothing.
    Source: DeepSeekMath (arXiv:2402.03300), section 4.1.2, outcome supervision.

    Args:
        rewards: prompts x samples.

    Returns:
        prompts x samples.
    """
    mean = rewards.mean(dim=1, keepdim=True)
    deviation = rewards.std(dim=1, keepdim=True, correction=0)
    return (rewards - mean) / (deviation + epsilon)


def policy_loss(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    *,
    tokens: float,
    clip: float = CLIP,
) -> torch.Tensor:
    """The loss whose gradient step makes the better answers of each group likelier.

    L = - 1/N sum_i sum_t min(q_it A_i, clamp(q_it, 1 - clip, 1 + clip) A_i),  q_it = exp(logprob_it - old_logprob_it)

    where t runs over the tokens of answer i and N over all tokens of the step (every token counts alike, so long
    answers are not favoured), and without a KL term.
    Sources: the clipped objective is GRPO's, DeepSeekMath (arXiv:2402.03300), equation 3; the sum over tokens instead
    of the mean per answer is DAPO's (arXiv:2503.14476), equation 8.

    Args:
        logprobs: sequences x tokens, of the policy that is trained; carries the gradient.
        old_logprobs: sequences x tokens, of the policy as it was when the answers were sampled.
        advantages: sequences.
        mask: sequences x tokens, 1 on sampled tokens and 0 on prompt and padding.
        tokens: N; the caller's, so that micro-batches and ranks add up to one mean.

    Returns:
        A scalar.
    """
    # Masked before the exponential: padding may hold anything, and inf * 0 is nan.
    ratio = ((logprobs - old_logprobs) * mask).exp()
    gain = advantages[:, None]
    objective = torch.minimum(ratio * gain, ratio.clamp(1 - clip, 1 + clip) * gain)
    return -(objective * mask).sum() / tokens


def entropy(logits: torch.Tensor) -> torch.Tensor:
    """Entropy of the next token, in nats: ``logits`` without its last dimension."""
    logprobs = logits.log_softmax(dim=-1)
    return -(logprobs.exp() * logprobs).sum(dim=-1)
