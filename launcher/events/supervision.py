"""What supervision did in a run, folded from its events: restarts, losses, spares, checkpoints, versions by replica."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from launcher.common.text import counted, duration, size
from launcher.events.fields import integer, integers, number, text


@dataclass(frozen=True, slots=True, kw_only=True)
class Happening:
    """One thing that a person wants to know of, in one line."""

    time: float
    kind: str
    """The name of the event."""

    text: str
    is_bad: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PastAttempt:
    """An attempt that was followed by another one."""

    attempt: int
    outcome: str
    step: int | None


@dataclass(slots=True, kw_only=True)
class Supervision:
    """Grows with the events of all attempts; what is true of an attempt only is forgotten when the next one begins."""

    happenings: list[Happening] = field(default_factory=list)
    past: list[PastAttempt] = field(default_factory=list)
    restarts: dict[str, int] = field(default_factory=dict)
    """Of this attempt, by what was restarted: ``engine``, ``trainer``."""

    replica_states: dict[int, str] = field(default_factory=dict)
    versions: dict[int, int] = field(default_factory=dict)
    """Version that each replica serves."""

    lost_nodes: dict[int, str] = field(default_factory=dict)
    """Hostname by node rank."""

    spares: dict[int, str] = field(default_factory=dict)
    """Hostname of the spare by the node rank that it took."""

    preflight: dict[int, bool] = field(default_factory=dict)
    """Whether each node passed."""

    checkpoint: int | None = None
    """Step of the newest complete checkpoint."""

    resumed: int | None = None
    """Step that this attempt began from."""

    stopping: str | None = None
    has_published: bool = False

    def apply(self, event: Mapping[str, Any], time: float, *, nodes: int | None) -> None:
        """Folds one event; those that are none of supervision's are passed over."""
        handler = getattr(self, f"_on_{event.get('event')}", None)
        if handler is not None:
            for line, is_bad in handler(event, nodes):
                self.happenings.append(Happening(time=time, kind=str(event["event"]), text=line, is_bad=is_bad))

    def stepped(self, version: int, replicas: Iterable[int]) -> None:
        """A step told its version: where nothing tells it by replica, all of those that are ready serve it."""
        if not self.has_published:
            self.versions |= dict.fromkeys(replicas, version)

    def attempt_ended(self, attempt: int, outcome: str, step: int | None) -> None:
        """Another attempt begins."""
        self.past.append(PastAttempt(attempt=attempt, outcome=outcome, step=step))
        for table in (self.restarts, self.replica_states, self.versions, self.lost_nodes, self.spares, self.preflight):
            table.clear()
        self.resumed = self.stopping = None

    def _on_restart(self, event: Mapping[str, Any], nodes: int | None) -> Iterable[tuple[str, bool]]:
        what = text(event.get("what")) or "process"
        count, limit = (
            integer(event.get("restart_count", event.get("restart"))),
            integer(event.get("max_restarts", event.get("of"))),
        )
        self.restarts[what] = self.restarts.get(what, 0) + 1
        replica, delay = integer(event.get("replica")), number(event.get("delay_s"))
        who = f"inference-{replica}" if replica is not None else "all trainers" if what == "trainer" else what
        line = f"restarting {who}"
        if count is not None:
            line += f" (restart {count}{f' of {limit}' if limit is not None else ''})"
        line += f" in {duration(delay)}" if delay else ""
        yield f"{line}{_because(event)}", True

    def _on_replica(self, event: Mapping[str, Any], nodes: int | None) -> Iterable[tuple[str, bool]]:
        replica, state = integer(event.get("replica")), text(event.get("state"))
        if replica is None or state is None:
            return
        before = self.replica_states.get(replica)
        self.replica_states[replica] = state
        if state in ("lost", "dropped"):
            self.versions.pop(replica, None)
        # The first time that a replica is ready has a line of its own, and a restart, too.
        if state in ("lost", "dropped") or (state == "ready" and before is not None):
            words = {"lost": "is lost", "dropped": "is dropped for good", "ready": "is ready again"}
            yield f"inference-{replica} {words[state]}{_because(event)}", state != "ready"

    def _on_node_lost(self, event: Mapping[str, Any], nodes: int | None) -> Iterable[tuple[str, bool]]:
        node = integer(event.get("node_rank"))
        if node is not None:
            self.lost_nodes[node] = text(event.get("hostname")) or f"node {node}"
            role = text(event.get("role")) or "node"
            yield f"lost {role} node {node} ({self.lost_nodes[node]}){_because(event)}", True

    def _on_spare(self, event: Mapping[str, Any], nodes: int | None) -> Iterable[tuple[str, bool]]:
        place = integer(event.get("slot", event.get("takes")))
        if place is not None:
            self.spares[place] = text(event.get("hostname")) or "a spare"
            yield f"spare {self.spares[place]} takes the place of node {place}", False

    def _on_preflight(self, event: Mapping[str, Any], nodes: int | None) -> Iterable[tuple[str, bool]]:
        node = integer(event.get("node_rank"))
        if node is None:
            return
        self.preflight[node] = event.get("ok") is True
        if not self.preflight[node]:
            checks = [check for check in event.get("checks") or () if isinstance(check, dict) and not check.get("ok")]
            found = "; ".join(f"{check.get('name')}: {check.get('text')}" for check in checks) or "not said why"
            yield f"preflight FAILED on node {node} ({text(event.get('hostname'))}): {found}", True
        elif len(self.preflight) == nodes and all(self.preflight.values()):
            yield f"preflight passed on {counted(len(self.preflight), 'node')}", False

    def _on_checkpoint(self, event: Mapping[str, Any], nodes: int | None) -> Iterable[tuple[str, bool]]:
        step, state = integer(event.get("step")), event.get("state")
        if state == "failed":
            yield f"the checkpoint of step {step} FAILED{_because(event)}", True
        if state != "end" or step is None:
            return
        self.checkpoint = step
        seconds, count = number(event.get("seconds")), number(event.get("bytes"))
        took = f" in {duration(seconds)}" if seconds is not None else ""
        yield f"checkpoint of step {step} saved{took}{f', {size(count)}' if count is not None else ''}", False

    def _on_resumed(self, event: Mapping[str, Any], nodes: int | None) -> Iterable[tuple[str, bool]]:
        self.resumed = integer(event.get("step"))
        yield f"resumed from step {self.resumed}: {text(event.get('path'))}", False

    def _on_stopping(self, event: Mapping[str, Any], nodes: int | None) -> Iterable[tuple[str, bool]]:
        self.stopping = text(event.get("reason")) or "asked to"
        yield f"stopping: {self.stopping}", False

    def _on_requeued(self, event: Mapping[str, Any], nodes: int | None) -> Iterable[tuple[str, bool]]:
        yield f"requeued{_because(event)}", False

    def _on_published(self, event: Mapping[str, Any], nodes: int | None) -> Iterable[tuple[str, bool]]:
        version = integer(event.get("version"))
        if version is None:
            return
        self.has_published = True
        self.versions |= dict.fromkeys(integers(event.get("replicas")), version)
        dropped = integers(event.get("dropped"))
        if dropped:
            names = ", ".join(f"inference-{replica}" for replica in dropped)
            yield f"version {version} did not reach {names}", True


def _because(event: Mapping[str, Any]) -> str:
    reason = text(event.get("reason"))
    return f": {reason}" if reason else ""
