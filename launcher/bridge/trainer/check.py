"""Meaning, not only transport: an engine's log-probabilities against the trainer's own forward."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from launcher.common import http
from launcher.common.errors import TransferError

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


def trainer_logprobs(model: nn.Module, prompts: Sequence[Sequence[int]], forward: Forward | None) -> list[list[float]]:
    """Of every token but the first of each prompt; every rank calls it, as the forward may be collective."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    was_training = model.training
    model.eval()
    found = []
    try:
        with torch.no_grad():
            for prompt in prompts:
                ids = torch.tensor([list(prompt)], device=device)
                logits = model(input_ids=ids).logits if forward is None else forward(ids)
                scores = logits[0, :-1].float().log_softmax(-1)
                found.append(scores.gather(1, ids[0, 1:, None])[:, 0].tolist())
    finally:
        model.train(was_training)
    return found


def engine_logprobs(url: str, key: str, prompts: Sequence[Sequence[int]], timeout_s: float) -> list[list[float]]:
    """The same of the engine at a URL, through its public API.

    Raises:
        TransferError: it does not answer in time, or not as vLLM does.
    """
    found = []
    for prompt in prompts:
        body = {"prompt": list(prompt), "max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0}
        try:
            reply = http.request(
                "POST", f"{url}/v1/completions", body=json.dumps(body).encode(), key=key, timeout_s=timeout_s
            )
            if reply.status != 200:
                raise TransferError(f"The engine at {url} answered HTTP {reply.status}: {reply.body[:200]!r}")
            tokens = json.loads(reply.body)["choices"][0]["prompt_logprobs"][1:]
            found.append([float(of[str(token)]["logprob"]) for of, token in zip(tokens, prompt[1:], strict=True)])
        except (http.HttpError, ValueError, KeyError, TypeError) as error:
            raise TransferError(f"The engine at {url} did not answer a check: {error}") from error
    return found


def difference(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Mean and largest absolute difference over all tokens."""
    found = [abs(a - b) for x, y in zip(ours, theirs, strict=True) for a, b in zip(x, y, strict=True)]
    return sum(found) / len(found), max(found)
