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
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

HEADER = b"x-weight-versions"
REQUEST_ID = b"x-request-id"

Version = int | None


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

    def committed(self, engine: Any, version: int) -> None:
        """A version has been written and the engine has not resumed: what comes from now on is of ``version``.

        Args:
            engine: vLLM's engine client, paused.
        """
        running: set[str] = set()
        for request_id, prompt, index, tokens in _running(engine, self._requests):
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


def _running(engine: Any, known: dict[str, RequestSpans]) -> Iterator[tuple[str, int, int, int]]:
    """Request, prompt, choice, and tokens so far of all that vLLM has in hand."""
    for internal_id, state in engine.output_processor.request_states.items():
        # "cmpl-ID-3" is the fourth prompt of a completion request, "chatcmpl-ID" a chat.
        external_id = str(getattr(state, "external_req_id", internal_id)).partition("-")[2]
        head, _, number = external_id.rpartition("-")
        found = (head, int(number)) if head in known and number.isdigit() else (external_id, 0)
        if found[0] in known and state.detokenizer is not None:
            yield (*found, int(state.request_index or 0), int(state.detokenizer.num_output_tokens()))


def _name(version: Version) -> str:
    return "none" if version is None else str(version)
