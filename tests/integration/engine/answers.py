"""What the answers of :mod:`tests.integration.engine.load_program`'s clients must be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from launcher.inference.versions import token_versions
from tests.integration.engine.load_program import token_of

Versions = tuple[int | None, ...]


def check_answers(answers: Sequence[dict[str, Any]]) -> list[Versions]:
    """Compares every token with the version that its answer declares for it; the versions, choice by choice."""
    declared = []
    for answer in answers:
        for choice, tokens in enumerate(answer["tokens"]):
            assert len(tokens) == answer["asked"]
            versions = token_versions(answer["versions"], len(tokens), choice=choice)
            # An answer that came in while a version was written may be of one or the other, but is of one.
            if "|" not in answer["versions"].split(";")[0] or f"0.{choice}=" in answer["versions"]:
                assert tokens == [token_of(version) for version in versions if version is not None], answer
            else:
                assert len(set(tokens)) == 1, answer
            declared.append(versions)
    return declared


def spanning(declared: Sequence[Versions]) -> int:
    """How many choices are of more than one version."""
    return sum(len(set(versions)) > 1 for versions in declared)


def unsure(answers: Sequence[dict[str, Any]]) -> int:
    """How many answers say that they cannot tell."""
    return sum("|" in answer["versions"] for answer in answers)
