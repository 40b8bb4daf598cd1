"""A client that sends requests to all engines and checks the versions in their answers while the weights change."""

from __future__ import annotations

import threading
from typing import Any

import httpx

from launcher.inference.client import api_key, inference_urls
from launcher.inference.versions import HEADER, token_versions

PAUSE_S = 0.2
TIMEOUT_S = 10.0
TOKENS = 4


class RequestClient:
    """Sends requests from a thread to each engine of the pool in turn.

    An answer is wrong if a token is of weights older than those whose publication was over when the request was sent,
    or newer than those whose publication had begun when the answer came, or older than the token before it.

    Args:
        version: of the weights that are served now.
    """

    def __init__(self, version: int) -> None:
        self.committed = version
        """The last version whose publication is over."""

        self.begun = version
        """The last version whose publication has begun."""

        self._answers = 0
        self._lost = 0
        self._wrong: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="client", daemon=True)
        self._thread.start()

    def report(self) -> dict[str, Any]:
        """How many answers there were so far, how many requests had none, and which answers were wrong."""
        return {"answers": self._answers, "lost": self._lost, "wrong": list(self._wrong)}

    def close(self) -> None:
        """Ends the thread."""
        self._stop.set()
        self._thread.join(timeout=2 * TIMEOUT_S)

    def _run(self) -> None:
        while not self._stop.wait(PAUSE_S):
            for url in inference_urls():
                self._request(url)

    def _request(self, url: str) -> None:
        committed = self.committed
        try:
            versions = _versions(url)
        except httpx.HTTPError:
            self._lost += 1  # an engine may die at any time; only its answers count
            return
        self._answers += 1
        if problem := version_problem(versions, committed, self.begun):
            self._wrong.append(f"{url}: {problem}")


def version_problem(versions: tuple[int | None, ...], committed: int, begun: int) -> str | None:
    """What is wrong with the versions of an answer's tokens; None if nothing is."""
    known = [version for version in versions if version is not None]
    if len(known) < len(versions):
        return "weights of no version"
    if known != sorted(known):
        return f"versions {known} go back"
    if known and not committed <= known[0] <= known[-1] <= begun:
        return f"versions {known}, not {committed} to {begun}"
    return None


def _versions(url: str) -> tuple[int | None, ...]:
    # A site's HTTP proxy must not see requests to a node of the job.
    with httpx.Client(
        headers={"Authorization": f"Bearer {api_key()}"}, base_url=url, timeout=TIMEOUT_S, trust_env=False
    ) as client:
        model = client.get("/v1/models").raise_for_status().json()["data"][0]["id"]
        body = {"model": model, "prompt": [1, 2, 3], "max_tokens": TOKENS, "temperature": 0.0, "ignore_eos": True}
        answer = client.post("/v1/completions", json=body).raise_for_status()
        return token_versions(answer.headers.get(HEADER), TOKENS)
