"""Advantages and loss against cases computed by hand."""

from __future__ import annotations

import math

import pytest
import torch

from launcher.trainers.grpo.update import entropy, group_advantages, policy_loss


def test_advantages_compare_within_a_group() -> None:
    advantages = group_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]]), epsilon=0.0001)
    # Mean 1/4, standard deviation sqrt(3)/4: (1 - 1/4) / (sqrt(3)/4) = sqrt(3), (0 - 1/4) / (sqrt(3)/4) = -1/sqrt(3).
    expected = [math.sqrt(3), -1 / math.sqrt(3), -1 / math.sqrt(3), -1 / math.sqrt(3)]
    assert advantages[0].tolist() == pytest.approx(expected, rel=1e-3)
    assert advantages[1].tolist() == [0.0] * 4


def test_gradient_of_a_fresh_batch_is_the_policy_gradient() -> None:
    logprobs = torch.tensor([[-1.0, -2.0, -9.0], [-0.5, -9.0, -9.0]], requires_grad=True)
    mask = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    loss = policy_loss(logprobs, logprobs.detach(), torch.tensor([2.0, -1.0]), mask, tokens=3)
    loss.backward()  # type: ignore[no-untyped-call]
    # Every ratio is 1: L = -(2 + 2 - 1) / 3, and dL/dlogprob is -advantage / 3 on each sampled token.
    assert loss.item() == pytest.approx(-1.0)
    assert logprobs.grad is not None
    assert torch.allclose(logprobs.grad, torch.tensor([[-2 / 3, -2 / 3, 0.0], [1 / 3, 0.0, 0.0]]))


def test_clipping_stops_what_has_moved_far_enough() -> None:
    ratios = torch.tensor([[1.5], [1.5], [0.5], [0.5]])
    logprobs = ratios.log().requires_grad_()
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0])
    loss = policy_loss(logprobs, torch.zeros(4, 1), advantages, torch.ones(4, 1), tokens=4, clip=0.2)
    loss.backward()  # type: ignore[no-untyped-call]
    # min(1.5, 1.2) + min(-1.5, -1.2) + min(0.5, 0.8) + min(-0.5, -0.8) = 1.2 - 1.5 + 0.5 - 0.8
    assert loss.item() == pytest.approx(0.6 / 4)
    assert logprobs.grad is not None
    # d ratio / d logprob = ratio where it is not clipped; nothing where it is.
    assert torch.allclose(logprobs.grad.flatten(), torch.tensor([0.0, 1.5 / 4, -0.5 / 4, 0.0]))


def test_what_lies_in_the_padding_has_no_effect() -> None:
    logprobs = torch.tensor([[-1.0, 500.0]], requires_grad=True)
    old, mask = torch.tensor([[-1.0, -500.0]]), torch.tensor([[1.0, 0.0]])
    loss = policy_loss(logprobs, old, torch.tensor([1.0]), mask, tokens=1)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == pytest.approx(-1.0)
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [[-1.0, 0.0]]


def test_entropy() -> None:
    assert entropy(torch.tensor([[0.0, 0.0, 0.0, 0.0], [100.0, 0.0, 0.0, 0.0]])).tolist() == pytest.approx(
        [math.log(4), 0]
    )
