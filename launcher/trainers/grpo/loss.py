"""Group-relative policy optimisation: advantages within a group, and the clipped token-level policy loss."""

from __future__ import annotations

import torch

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
