"""Samples from the engines over the OpenAI completions API, with exact token ids and their log-probabilities."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import httpx

from launcher.errors import LauncherError

T = TypeVar("T")


class RolloutError(LauncherError):
    """An engine did not answer a request, or not with what was asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One sampled answer."""

    token_ids: tuple[int, ...]
    """The sampled tokens; the end-of-sequence token is the last one if ``finished``."""

    logprobs: tuple[float, ...]
    """The engine's log-probability of each token, at temperature 1 whatever the sampling temperature was."""

    finished: bool
    """The model ended the answer itself, rather than running into the length limit."""

    top: tuple[dict[int, float], ...] = ()
    """At each position the likeliest tokens with their log-probabilities, if asked for."""

    def answer_ids(self) -> tuple[int, ...]:
        """The tokens without the end-of-sequence token."""
        return self.token_ids[:-1] if self.finished else self.token_ids


class Engines:
    """The run's engines, used in turn. Requests run concurrently; each has a deadline, and none is sent twice."""

    def __init__(self, urls: Sequence[str], api_key: str, *, timeout_s: float) -> None:
        """``timeout_s`` is the longest wait for one answer, time in the engine's queue included."""
        if not urls:
            raise RolloutError("No engine to sample from: LAUNCHER_INFERENCE_URLS is empty.")
        self.urls = tuple(urls)
        self._timeout_s = timeout_s
        # One loop for all calls: the connections belong to it and stay open between steps.
        self._runner = asyncio.Runner()
        self._client = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {api_key}"},
            timeout=timeout_s,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=256),
            trust_env=False,  # a site's HTTP proxy must not see requests to a node of the job
        )
        try:
            self._model = self._runner.run(self._served_model(self.urls[0]))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._runner.run(self._client.aclose())
        self._runner.close()

    def sample(
        self, prompts: Sequence[Sequence[int]], *, samples: int, max_tokens: int, temperature: float, seed: int
    ) -> list[list[Completion]]:
        """Samples ``samples`` completions of each prompt; the engines take turns.

        Raises:
            RolloutError: an engine failed or missed the deadline.
        """
        requests = [
            self._complete(
                self.urls[index % len(self.urls)],
                prompt,
                {
                    "n": samples,
                    "max_tokens": max_tokens,
                    "temperature": temperature,
                    # One seed for each prompt: with a common one, equal prompts would get equal answers.
                    "seed": (seed * 1_000_003 + index) % 2**31,
                    "logprobs": 0,
                },
            )
            for index, prompt in enumerate(prompts)
        ]
        return self._runner.run(_gather(requests))

    def greedy(self, url: str, prompts: Sequence[Sequence[int]], *, max_tokens: int, top: int) -> list[Completion]:
        """The likeliest completion of each prompt from one engine, with the ``top`` likeliest tokens per position."""
        options = {"n": 1, "max_tokens": max_tokens, "temperature": 0.0, "logprobs": top}
        answers = self._runner.run(_gather([self._complete(url, prompt, options) for prompt in prompts]))
        return [answer for (answer,) in answers]

    async def _served_model(self, url: str) -> str:
        answer = await self._request("GET", f"{url}/v1/models")
        return str(answer["data"][0]["id"])

    async def _complete(self, url: str, prompt: Sequence[int], options: dict[str, Any]) -> list[Completion]:
        body = {
            "model": self._model,
            "prompt": list(prompt),
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
            # The engine takes its defaults from the model's generation_config.json; a truncated or penalised
            # distribution is not the policy whose gradient is computed.
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            **options,
        }
        answer = await self._request("POST", f"{url}/v1/completions", body)
        choices = sorted(answer["choices"], key=lambda choice: int(choice["index"]))
        if len(choices) != options["n"]:
            raise RolloutError(f"{url} answered with {len(choices)} completions, not the {options['n']} asked for.")
        return [_parse(choice) for choice in choices]

    async def _request(self, method: str, url: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        try:
            # httpx's own timeout is per read; a server that trickles must not escape the deadline.
            async with asyncio.timeout(self._timeout_s):
                response = await self._client.request(method, url, json=body)
        except (TimeoutError, httpx.TimeoutException) as error:
            raise RolloutError(
                f"{url} did not answer within `trainer.options.request_timeout_s` ({self._timeout_s:g})."
            ) from error
        except httpx.HTTPError as error:
            raise RolloutError(f"{url} cannot be reached: {str(error) or type(error).__name__}.") from error
        if response.status_code != 200:
            raise RolloutError(f"{url} answered {response.status_code}: {response.text[:500]}")
        answer: dict[str, Any] = response.json()
        return answer


def _parse(choice: dict[str, Any]) -> Completion:
    logprobs = choice["logprobs"]
    top = logprobs["top_logprobs"] or []
    return Completion(
        token_ids=tuple(choice["token_ids"]),
        logprobs=tuple(logprobs["token_logprobs"]),
        finished=choice["finish_reason"] == "stop",
        top=tuple({int(name.removeprefix("token_id:")): value for name, value in position.items()} for position in top),
    )


async def _gather(requests: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Runs them together; the first failure cancels the rest and is the one raised."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(request) for request in requests]
    except* RolloutError as failures:
        raise failures.exceptions[0] from failures
    return [task.result() for task in tasks]
