"""Reads which version of the weights produced which token, as the engines' answers declare it."""

from __future__ import annotations

import re

HEADER = "x-weight-versions"

_VERSION = r"(?:\d+|none)"
_VALUE = re.compile(rf"{_VERSION}(?:\|{_VERSION})*(?:;\d+\.\d+={_VERSION}:\d+(?:,{_VERSION}:\d+)*)*")


def token_versions(header: str | None, tokens: int, *, prompt: int = 0, choice: int = 0) -> tuple[int | None, ...]:
    """The version that produced each token of one choice of an answer.

    Where the engine does not know which of several versions it was, it is the oldest of them: that is what a correction
    for old samples has to assume.

    Args:
        header: the answer's ``x-weight-versions`` (:mod:`launcher.bridge.engine.version_spans` has its grammar); None
            before the first version was published.
        tokens: how many tokens the choice has.
        prompt: number of the prompt in a request with several.
        choice: number of the choice among those of its prompt (``n``).

    Returns:
        ``tokens`` versions; None stands for the weights that the engine was started with.

    Raises:
        ValueError: the header is not of that grammar.
    """
    if header is None:
        return (None,) * tokens
    if not _VALUE.fullmatch(header):
        raise ValueError(f"`{HEADER}` ({header!r}) is not a declaration of versions.")
    base, *choices = header.split(";")
    for entry in choices:
        which, _, spans = entry.partition("=")
        if which == f"{prompt}.{choice}":
            starts = [(_version(name), int(first)) for name, _, first in (s.partition(":") for s in spans.split(","))]
            ends = [first for _, first in starts[1:]] + [tokens]
            return tuple(version for (version, first), end in zip(starts, ends, strict=True) for _ in range(first, end))
    versions = [_version(name) for name in base.split("|")]
    return (None if None in versions else min(v for v in versions if v is not None),) * tokens


def _version(name: str) -> int | None:
    return None if name == "none" else int(name)
