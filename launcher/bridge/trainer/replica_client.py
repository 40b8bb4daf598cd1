"""The trainer's line to one replica: the bridge's routes on the engine's own port, each call with a deadline."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

from launcher.common.errors import TransferError


class ReplicaClient:
    """Calls the bridge routes of one engine.

    Args:
        url: base URL of the engine.
        key: the run's bridge key.
        generation: which start of the engine this is.
        incarnation: how often the trainers have been restarted; an engine refuses those older than it has seen.
        adapter: name of the adapter that all calls are about; None for the model's weights.
    """

    def __init__(
        self,
        index: int,
        url: str,
        key: str,
        *,
        generation: int = 0,
        incarnation: int = 0,
        adapter: str | None = None,
    ) -> None:
        self.index = index
        self.url = url
        self.generation = generation
        self._key = key
        self._about = (
            {"incarnation": incarnation} if adapter is None else {"incarnation": incarnation, "adapter": adapter}
        )

    def call(self, route: str, body: dict[str, Any] | None = None, *, timeout_s: float) -> dict[str, Any]:
        """POST with a body, GET without; the JSON answer.

        Raises:
            TransferError: no answer in time, or a refusal; the message holds the engine's own words.
        """
        request = urllib.request.Request(
            f"{self.url}/bridge/{route}",
            data=None if body is None else json.dumps({**body, **self._about}).encode(),
            headers={"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=timeout_s) as reply:
                answer: dict[str, Any] = json.load(reply)
                return answer
        except urllib.error.HTTPError as error:
            raise TransferError(f"Replica {self.index} at {self.url} refused `{route}`: {_reason(error)}") from error
        except (OSError, ValueError) as error:
            raise TransferError(
                f"Replica {self.index} at {self.url} did not answer `{route}` within {timeout_s:g} s: {error}"
            ) from error


def _reason(error: urllib.error.HTTPError) -> str:
    text = error.read().decode(errors="replace")
    try:
        return str(json.loads(text)["error"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {error.code} {text[:200]}"
