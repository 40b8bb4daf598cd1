"""Meaning, not only transport: an engine's log-probabilities against the trainer's own forward."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from launcher.common import http
from launcher.common.errors import TransferError

TOKENS = 16
"""That an engine makes of each prompt."""

MOST_CHECKED = 4
"""Replicas that are asked: the checksum says that all have the same."""

Forward = Callable[[torch.Tensor], torch.Tensor]
"""From token ids, int64 of shape (1, length), to logits of shape (1, length, vocabulary)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckReport:
    """How far engines are from the trainer; the same on every rank. Differences are of natural log-probabilities."""

    ok: bool
    """Whether the mean difference of every engine is within the tolerance."""

    tokens: int
    """Compared, of each engine."""

    differences: dict[int, tuple[float, float]]
    """Mean and largest absolute difference, by replica."""

    tolerance: float

    @property
    def text(self) -> str:
        """For people."""
        worst = max(self.differences, key=lambda index: self.differences[index])
        mean, most = self.differences[worst]
        if self.ok:
            return f"log-probabilities of {self.tokens} tokens differ by {mean:.2g} on average, {most:.2g} at most"
        return (
            f"HINT: values or their order are not the checkpoint's, as when rotary pairs were not permuted or a fused"
            f" tensor was split wrongly. Replica {worst} serves what the trainer sent, but means something else: over"
            f" {self.tokens} tokens log-probabilities differ by {mean:.2g} on average (tolerance {self.tolerance:g}),"
            f" {most:.2g} at most."
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What an engine made of a prompt: its likeliest tokens, one after the other."""

    prompt: list[int]
    tokens: list[int]
    logprobs: list[float]


def engine_answers(url: str, key: str, prompts: Sequence[Sequence[int]], timeout_s: float) -> list[Answer]:
    """Of the engine at a URL, through its public API.

    Raises:
        TransferError: it does not answer in time, or not as vLLM does.
    """
    found = []
    options = {"max_tokens": TOKENS, "temperature": 0.0, "ignore_eos": True, "logprobs": 0, "return_token_ids": True}
    for prompt in prompts:
        body = json.dumps({"prompt": list(prompt), **options}).encode()
        try:
            reply = http.request("POST", f"{url}/v1/completions", body=body, key=key, timeout_s=timeout_s)
            if reply.status != 200:
                raise TransferError(f"The engine at {url} answered HTTP {reply.status}: {reply.body[:200]!r}")
            choice = json.loads(reply.body)["choices"][0]
            logprobs = [float(value) for value in choice["logprobs"]["token_logprobs"]]
            found.append(Answer(prompt=list(prompt), tokens=list(choice["token_ids"]), logprobs=logprobs))
        except (http.HttpError, ValueError, KeyError, TypeError) as error:
            raise TransferError(f"The engine at {url} did not answer a check: {error}") from error
    return found


def differences(model: nn.Module, answers: Sequence[Answer], forward: Forward | None) -> tuple[float, float]:
    """Mean and largest absolute difference of the tokens' log-probabilities; every rank calls it, as the forward may be
    collective."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    was_training = model.training
    model.eval()
    found: list[float] = []
    try:
        with torch.no_grad():
            for answer in answers:
                ids = torch.tensor([answer.prompt + answer.tokens], device=device)
                logits = model(input_ids=ids).logits if forward is None else forward(ids)
                scores = logits[0, len(answer.prompt) - 1 : -1].float().log_softmax(-1)
                ours = scores.gather(1, ids[0, len(answer.prompt) :, None])[:, 0].tolist()
                found += [abs(a - b) for a, b in zip(ours, answer.logprobs, strict=True)]
    finally:
        model.train(was_training)
    return sum(found) / len(found), max(found)
