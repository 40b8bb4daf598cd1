"""What is asked of an engine, and its answers in a form that can be compared exactly."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

PROMPTS = [[3, 5, 7, 11], [2, 4, 6, 8, 10, 12], [13, 1], [9, 9, 9, 9, 9]]
NEW_TOKENS = 12


def ask(url: str, path: str, key: str | None, body: dict[str, Any] | None = None) -> tuple[int, Any, dict[str, str]]:
    """One HTTP request: status, JSON (or None), headers in lower case."""
    headers = {"Content-Type": "application/json"}
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data=data, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=120) as reply:
            content = reply.read()
            return (
                reply.status,
                json.loads(content) if content else None,
                {k.lower(): v for k, v in reply.headers.items()},
            )
    except urllib.error.HTTPError as error:
        return error.code, None, {}


def greedy(url: str, key: str, model: str | None = None) -> list[dict[str, Any]]:
    """Greedy tokens and their log-probabilities, for each prompt; of the engine's first model if none is named."""
    if model is None:
        _, models, _ = ask(url, "/v1/models", key)
        model = models["data"][0]["id"]
    answers = []
    for prompt in PROMPTS:
        body = {
            "model": model,
            "prompt": prompt,
            "max_tokens": NEW_TOKENS,
            "temperature": 0.0,
            "logprobs": 1,
            "ignore_eos": True,
            "return_token_ids": True,
        }
        status, answer, headers = ask(url, "/v1/completions", key, body)
        assert status == 200, status
        choice = answer["choices"][0]
        answers.append(
            {
                "tokens": choice["token_ids"],
                "logprobs": choice["logprobs"]["token_logprobs"],
                "version": headers.get("x-weight-version"),
                "adapter": headers.get("x-weight-adapter"),
            }
        )
    return answers
