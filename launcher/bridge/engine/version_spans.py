"""Which version of the weights produced which token of an answer.

A request that runs while a version is committed goes on afterwards: its first tokens come from the old weights, the
rest from the new ones. An answer says so in the header ``x-weight-versions``, here in augmented BNF (RFC 5234)::

    value  = base *(";" choice)            ; "7"  or  "7;0.0=7:0,8:12"  or  "7|8"
    base   = version *("|" version)        ; of every choice that is not listed
    choice = prompt "." index "=" span *("," span)
    span   = version ":" first-token       ; holds up to the next span's first token
    version = 1*DIGIT / "none"             ; "none": the weights that the engine was started with

``7|8`` says that the engine cannot tell: the request came in while version 8 was being written.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field

HEADER = b"x-weight-versions"
REQUEST_ID = b"x-request-id"

Version = int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningRequest:
    """One choice of a request that an engine has in hand."""

    names: tuple[tuple[str, int], ...]
    """The request's id and the number of its prompt, for each way to read the engine's own id; the first whose id is
    known is meant."""

    choice: int
    tokens: int
    """That it has produced so far."""


@dataclass(slots=True)
class RequestSpans:
    """One request in flight."""

    bases: list[Version]
    choices: dict[tuple[int, int], list[tuple[Version, int]]] = field(default_factory=dict)
    """By number of the prompt and of its choice: version and first token."""

    def text(self) -> str:
        """The header's value."""
        parts = ["|".join(map(_name, self.bases))]
        for (prompt, index), starts in sorted(self.choices.items()):
            parts.append(f"{prompt}.{index}=" + ",".join(f"{_name(version)}:{first}" for version, first in starts))
        return ";".join(parts)


class VersionSpans:
    """Follows the requests in flight from one version to the next. For one event loop, the engine's."""

    def __init__(self) -> None:
        self._requests: dict[str, RequestSpans] = {}

    def begin(self, request_id: str, version: Version) -> None:
        """A request comes in while ``version`` is served."""
        self._requests[request_id] = RequestSpans(bases=[version])

    def end(self, request_id: str) -> None:
        """It has been answered, or its client is gone."""
        self._requests.pop(request_id, None)

    def text(self, request_id: str) -> str:
        """The header's value, as things stand."""
        request = self._requests.get(request_id)
        return "none" if request is None else request.text()

    def committed(self, running_requests: Iterable[RunningRequest], version: int) -> None:
        """A version has been written and the engine has not resumed: what comes from now on is of ``version``.

        Args:
            running_requests: what the paused engine has in hand.
        """
        running: set[str] = set()
        for found in running_requests:
            known = next((name for name in found.names if name[0] in self._requests), None)
            if known is None:
                continue
            (request_id, prompt), index, tokens = known, found.choice, found.tokens
            running.add(request_id)
            request = self._requests[request_id]
            # Whatever came before, it was not in hand then: it began with the last version.
            del request.bases[:-1]
            starts = request.choices.setdefault((prompt, index), [(request.bases[-1], 0)])
            if starts[-1][1] == tokens:
                starts[-1] = (version, tokens)  # the last one produced nothing
            else:
                starts.append((version, tokens))
        for request_id in self._requests.keys() - running:
            # On its way into the engine, or out of it: either all of its tokens come from now on, or none.
            self._requests[request_id].bases.append(version)


def new_request_id() -> str:
    """An id that no other request has."""
    return uuid.uuid4().hex


def _name(version: Version) -> str:
    return "none" if version is None else str(version)
