"""Samples from the engines over the OpenAI completions API, with exact token ids and their log-probabilities."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import httpx

from launcher.common.errors import LauncherError

T = TypeVar("T")

LOOK_S = 2.0
"""How often it is looked whether an engine that has not answered yet is still there."""

RETRY_S = 0.2


class RolloutError(LauncherError):
    """An engine did not answer a request, or not with what was asked for."""


class EngineLost(RolloutError):
    """An engine went away, or is about to; another one may answer."""


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
    """The run's engines, used in turn. Requests run concurrently, each with a deadline.

    What an engine that goes away has not answered, another one is asked.

    Args:
        urls: the engines.
        api_key: the key that they take.
        timeout_s: longest wait for one answer, time in the engine's queue included.
        live: says which engines there are now; without it an engine that goes away is an error.
        first: where to begin, so that ranks do not all begin with the same engine.
    """

    def __init__(
        self,
        urls: Sequence[str],
        api_key: str,
        *,
        timeout_s: float,
        live: Callable[[], Sequence[str]] | None = None,
        first: int = 0,
    ) -> None:
        if not urls and live is None:
            raise RolloutError("No engine to sample from.")
        self._urls = tuple(urls)
        self._live = live
        self._looked_at = time.monotonic()
        self._suspects: set[str] = set()
        self._first = first
        self._timeout_s = timeout_s
        # One loop for all calls: the connections belong to it and stay open between steps.
        self._runner = asyncio.Runner()
        self._client = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {api_key}"},
            timeout=timeout_s,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=256),
            trust_env=False,  # a site's HTTP proxy must not see requests to a node of the job
        )
        self._model: str | None = None
        try:
            if live is None:
                self._model = self._runner.run(self._served_model(self._urls[0]))
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
            RolloutError: an engine failed or missed the deadline, or none is left.
        """
        options = {"samples": samples, "max_tokens": max_tokens, "temperature": temperature, "seed": seed}
        answers = self.fill([None] * len(prompts), prompts, **options)  # type: ignore[arg-type]
        complete = [answer for answer in answers if answer is not None]
        if len(complete) < len(prompts):
            raise RolloutError("No engine is left to sample from.")
        return complete

    def fill(
        self,
        answers: Sequence[list[Completion] | None],
        prompts: Sequence[Sequence[int]],
        *,
        samples: int,
        max_tokens: int,
        temperature: float,
        seed: int,
    ) -> list[list[Completion] | None]:
        """The answers, with those that were missing; None where no engine was left to ask.

        Raises:
            RolloutError: an engine failed or missed the deadline.
        """
        self._look(0.0)
        missing = [index for index, answer in enumerate(answers) if answer is None]
        requests = [
            self._complete_anywhere(
                index,
                prompts[index],
                {
                    "n": samples,
                    "max_tokens": max_tokens,
                    "temperature": temperature,
                    # One seed for each prompt: with a common one, equal prompts would get equal answers.
                    "seed": (seed * 1_000_003 + index) % 2**31,
                    "logprobs": 0,
                },
            )
            for index in missing
        ]
        found = dict(zip(missing, self._runner.run(_gather(requests)), strict=True))
        return [found.get(index) if answer is None else answer for index, answer in enumerate(answers)]

    def greedy(self, url: str, prompts: Sequence[Sequence[int]], *, max_tokens: int, top: int) -> list[Completion]:
        """The likeliest completion of each prompt from one engine, with the ``top`` likeliest tokens per position."""
        options = {"n": 1, "max_tokens": max_tokens, "temperature": 0.0, "logprobs": top}
        answers = self._runner.run(_gather([self._complete(url, prompt, options) for prompt in prompts]))
        return [answer for (answer,) in answers]

    async def _complete_anywhere(
        self, index: int, prompt: Sequence[int], options: dict[str, Any]
    ) -> list[Completion] | None:
        """Asks one engine after another; None if none is left."""
        deadline = time.monotonic() + self._timeout_s
        while (url := self._pick(index)) is not None:
            try:
                return await self._complete(url, prompt, options)
            except EngineLost:
                if self._live is None or time.monotonic() > deadline:
                    raise
                self._suspects.add(url)
                await asyncio.sleep(RETRY_S)
                self._look(RETRY_S)
        return None

    def _pick(self, index: int) -> str | None:
        """The engine for a request; one that has just failed only if there is no other."""
        urls = [url for url in self._urls if url not in self._suspects] or self._urls
        return urls[(self._first + index) % len(urls)] if urls else None

    def _look(self, max_age_s: float) -> None:
        """Learns which engines there are, if what is known is too old."""
        if self._live is not None and time.monotonic() - self._looked_at >= max_age_s:
            before, self._urls = self._urls, tuple(self._live())
            self._looked_at = time.monotonic()
            # An engine that comes back is as good as any.
            self._suspects &= set(self._urls) & set(before)

    async def _served_model(self, url: str) -> str:
        answer = await self._request("GET", f"{url}/v1/models")
        return str(answer["data"][0]["id"])

    async def _complete(self, url: str, prompt: Sequence[int], options: dict[str, Any]) -> list[Completion]:
        if self._model is None:
            self._model = await self._served_model(url)
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
                response = await self._answer(method, url, body)
        except (TimeoutError, httpx.TimeoutException) as error:
            raise RolloutError(
                f"{url} did not answer within `trainer.options.request_timeout_s` ({self._timeout_s:g})."
            ) from error
        except httpx.HTTPError as error:
            raise EngineLost(f"{url} cannot be reached: {str(error) or type(error).__name__}.") from error
        if response.status_code >= 500:
            raise EngineLost(f"{url} answered {response.status_code}: {response.text[:500]}")
        if response.status_code != 200:
            raise RolloutError(f"{url} answered {response.status_code}: {response.text[:500]}")
        answer: dict[str, Any] = response.json()
        return answer

    async def _answer(self, method: str, url: str, body: dict[str, Any] | None) -> httpx.Response:
        """The response, unless the engine leaves the pool before there is one."""
        request = asyncio.ensure_future(self._client.request(method, url, json=body))
        try:
            while not request.done():
                await asyncio.wait({request}, timeout=LOOK_S)
                if self._live is not None and not request.done():
                    self._look(LOOK_S)
                    if not url.startswith(self._urls):
                        raise EngineLost(f"{url} has left the pool before it answered.")
            return request.result()
        finally:
            request.cancel()


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
