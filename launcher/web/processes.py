"""The state of each process of a run, folded from its events: what colours the GPUs of the page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from launcher.events.run_state import FIRST_STEP
from launcher.layout.model import Layout, Role

WAITING, STARTING, RUNNING, ENDED, FAILED, VICTIM, LOST = "w", "s", "r", "e", "f", "v", "l"
"""One letter each: a page of thousands of processes gets one text a second."""


@dataclass(slots=True)
class ProcessStates:
    """A letter for every process, in the order of the layout."""

    layout: Layout
    states: list[str] = field(default_factory=list)
    _index: dict[str, int] = field(default_factory=dict)
    _ranges: list[range] = field(default_factory=list)
    _has_failed: bool = False
    _is_training: bool = False

    def __post_init__(self) -> None:
        names = [process.name for node in self.layout.nodes for process in node.processes]
        self._index = {name: index for index, name in enumerate(names)}
        begin = 0
        for node in self.layout.nodes:
            self._ranges.append(range(begin, begin + len(node.processes)))
            begin += len(node.processes)
        self.forget()

    def forget(self) -> None:
        """Another attempt begins."""
        self.states = [WAITING] * len(self._index)
        self._has_failed = self._is_training = False

    def text(self) -> str:
        """All letters."""
        return "".join(self.states)

    def apply(self, event: Mapping[str, Any]) -> None:
        """Folds one event."""
        handler = getattr(self, f"_on_{event.get('event')}", None)
        if handler is not None:
            handler(event)

    def _on_attempt(self, event: Mapping[str, Any]) -> None:
        self.forget()

    def _on_process(self, event: Mapping[str, Any]) -> None:
        if event.get("state") == "started":
            self._set(event.get("name"), STARTING)
        else:
            self._set(event.get("name"), ENDED, unless=FAILED + VICTIM)

    def _on_phase(self, event: Mapping[str, Any]) -> None:
        if event.get("phase") == FIRST_STEP and event.get("state") == "begin":
            self._set(event.get("who"), RUNNING)

    def _on_engine_ready(self, event: Mapping[str, Any]) -> None:
        self._replica(event.get("replica"), RUNNING)

    def _on_replica(self, event: Mapping[str, Any]) -> None:
        if event.get("state") in ("lost", "dropped"):
            self._replica(event.get("replica"), FAILED)

    def _on_step(self, event: Mapping[str, Any]) -> None:
        if self._is_training:
            return
        self._is_training = True
        for node in self.layout.trainer_nodes:
            for index, process in zip(self._ranges[node.node_rank], node.processes, strict=True):
                if process.role is Role.TRAINER and self.states[index] == STARTING:
                    self.states[index] = RUNNING

    def _on_restart(self, event: Mapping[str, Any]) -> None:
        if event.get("what") == "trainer":
            self._is_training = False

    def _on_failure(self, event: Mapping[str, Any]) -> None:
        state = VICTIM if self._has_failed else FAILED
        self._has_failed = True
        role, rank = event.get("role"), event.get("rank")
        if role == Role.TRAINER.value and isinstance(rank, int):
            self._set(f"trainer-{rank:04d}", state)
        elif role == Role.INFERENCE.value and isinstance(rank, int):
            self._replica(rank, state)
        else:
            self._node(event.get("node_rank"), state)

    def _on_node_lost(self, event: Mapping[str, Any]) -> None:
        self._node(event.get("node_rank"), LOST)

    def _on_spare(self, event: Mapping[str, Any]) -> None:
        self._node(event.get("slot", event.get("takes")), WAITING)

    def _on_finished(self, event: Mapping[str, Any]) -> None:
        self.states = [ENDED if state in (WAITING, STARTING, RUNNING) else state for state in self.states]

    def _set(self, name: object, state: str, *, unless: str = "") -> None:
        index = self._index.get(str(name))
        if index is not None and not (unless and self.states[index] in unless):
            self.states[index] = state

    def _replica(self, replica: object, state: str) -> None:
        if not isinstance(replica, int) or replica >= len(self.layout.replicas):
            return
        for part in range(len(self.layout.replicas[replica].node_ranks)):
            self._set(f"inference-{replica}" + (f".{part}" if part else ""), state)

    def _node(self, node: object, state: str) -> None:
        if isinstance(node, int) and node < len(self._ranges):
            for index in self._ranges[node]:
                self.states[index] = state
