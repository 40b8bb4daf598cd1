"""Which version produced which token: as the engine declares it, and as a client reads it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from launcher.bridge.engine.version_spans import RunningRequest, VersionSpans
from launcher.bridge.vllm.compat import VllmEngine
from launcher.inference.versions import token_versions


@dataclass
class Detokenizer:
    tokens: int

    def num_output_tokens(self) -> int:
        return self.tokens


@dataclass
class RequestInHand:
    external_req_id: str
    detokenizer: Detokenizer | None
    request_index: int = 0


@dataclass
class OutputProcessor:
    request_states: dict[str, RequestInHand] = field(default_factory=dict)


@dataclass
class EngineInHand:
    """The part of vLLM's engine client that is read, with as many tokens as a test says."""

    output_processor: OutputProcessor = field(default_factory=OutputProcessor)

    def runs(self, **tokens: int) -> Sequence[RunningRequest]:
        states = self.output_processor.request_states
        states.clear()
        for name, count in tokens.items():
            request, _, index = name.partition("__")
            states[f"{name}-random"] = RequestInHand(
                f"cmpl-{request}-0", Detokenizer(count), int(index) if index else 0
            )
        return VllmEngine(self).running_requests()


@pytest.fixture
def spans() -> VersionSpans:
    found = VersionSpans()
    found.begin("a", 3)
    return found


def versions(spans: VersionSpans, tokens: int, choice: int = 0) -> tuple[int | None, ...]:
    return token_versions(spans.text("a"), tokens, choice=choice)


def test_an_answer_within_one_version_has_that_version(spans: VersionSpans) -> None:
    assert spans.text("a") == "3"
    assert versions(spans, 4) == (3, 3, 3, 3)


def test_tokens_before_and_after_a_commit_differ(spans: VersionSpans) -> None:
    engine = EngineInHand()
    spans.committed(engine.runs(a=2), 4)
    spans.committed(engine.runs(a=3), 5)
    assert spans.text("a") == "3;0.0=3:0,4:2,5:3"
    assert versions(spans, 5) == (3, 3, 4, 5, 5)


def test_a_version_that_produced_nothing_is_not_declared(spans: VersionSpans) -> None:
    engine = EngineInHand()
    spans.committed(engine.runs(a=0), 4)
    spans.committed(engine.runs(a=6), 5)
    spans.committed(engine.runs(a=6), 6)
    assert versions(spans, 8) == (4,) * 6 + (6,) * 2


def test_choices_that_ended_before_are_of_the_first_version(spans: VersionSpans) -> None:
    spans.committed(EngineInHand().runs(a__1=4), 4)
    assert versions(spans, 2, choice=0) == (3, 3)
    assert versions(spans, 6, choice=1) == (3, 3, 3, 3, 4, 4)


def test_a_request_on_its_way_is_declared_as_either_until_it_is_seen(spans: VersionSpans) -> None:
    engine = EngineInHand()
    spans.committed(engine.runs(), 4)
    assert spans.text("a") == "3|4"
    assert versions(spans, 2) == (3, 3)
    spans.committed(engine.runs(a=1), 5)
    assert versions(spans, 2) == (4, 5)


def test_requests_that_have_ended_are_forgotten_and_others_kept_apart(spans: VersionSpans) -> None:
    spans.begin("b-1", 3)
    spans.end("a")
    spans.committed(EngineInHand().runs(**{"a": 9, "b-1": 2}), 4)
    assert spans.text("b-1") == "3;0.0=3:0,4:2"
    assert spans.text("a") == "none"


def test_the_weights_of_the_start_have_no_version() -> None:
    assert token_versions(None, 2) == (None, None)
    assert token_versions("none;0.0=none:0,1:1", 3) == (None, 1, 1)
    assert token_versions("none|1", 1) == (None,)


@pytest.mark.parametrize("header", ["", "x", "3;", "3;0.0=", "3|", "3;0=3:0"])
def test_anything_else_is_refused(header: str) -> None:
    with pytest.raises(ValueError, match="x-weight-versions"):
        token_versions(header, 1)
