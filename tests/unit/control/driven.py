"""Drives the state of a run by its transitions, without sockets, threads or clocks."""

from __future__ import annotations

from typing import Any

from launcher.control import effects
from launcher.control.model import Assignment, Phase, StopReason
from launcher.control.preflight_report import PreflightReport
from launcher.control.protocol import (
    CancelRequest,
    EngineMasterRequest,
    EngineReadyRequest,
    EventRequest,
    FailRequest,
    HeartbeatRequest,
    HelloRequest,
    NodeLeftRequest,
    NodeLostRequest,
    PreflightRequest,
    ProcessEndedRequest,
    PublishedRequest,
    PutRequest,
    SignalRequest,
    StopRunRequest,
    TrainersDoneRequest,
)
from launcher.control.state import ControlSettings, new_state
from launcher.control.transitions import ControlEvent, Tick, apply
from launcher.control.views import assignment
from launcher.events.schema import FailureReported
from launcher.events.serialize import event_to_dict
from launcher.preflight.aggregate import compare_reports


class DrivenRun:
    """A state, its clock, and what its transitions had for effects."""

    def __init__(self, settings: ControlSettings, now: float = 0.0) -> None:
        self.now = now
        self.state = new_state(settings, now)
        self.events: list[dict[str, Any]] = []
        self.signals: list[str] = []
        self.notified: set[int] = set()

    def apply(self, event: ControlEvent) -> None:
        for effect in apply(self.state, event, self.now):
            match effect:
                case effects.LogEvent():
                    self.events.append(event_to_dict(effect.event))
                case effects.ForwardSignal():
                    self.signals.append(effect.name)
                case effects.NotifyNodes():
                    self.notified |= effect.node_ranks
                case effects.ComparePreflightReports():
                    hostnames = [node.hostname for node in self.state.settings.layout.all_nodes]
                    self.apply(compare_reports(hostnames, effect.reports))
                case _:
                    pass

    @property
    def phase(self) -> Phase:
        return self.state.phase

    def hello(self, node: int, hostname: str, address: str) -> None:
        self.apply(HelloRequest(node_rank=node, hostname=hostname, address=address))

    def preflight(self, report: PreflightReport) -> None:
        self.apply(PreflightRequest(report=report))

    def heartbeat(self, node: int) -> None:
        self.apply(HeartbeatRequest(node_rank=node, phase=self.phase))

    def tick(self) -> None:
        self.apply(Tick())

    def put(self, key: str, value: Any) -> None:
        self.apply(PutRequest(key=key, value=value))

    def emit(self, event: str, **fields: Any) -> None:
        self.apply(EventRequest(event=event, fields=fields))

    def master(self, replica: int, restart_count: int, address: str) -> None:
        self.apply(EngineMasterRequest(replica=replica, restart_count=restart_count, address=address))

    def engine_ready(self, replica: int, restart_count: int, url: str, seconds: float = 1.0) -> None:
        self.apply(EngineReadyRequest(replica=replica, restart_count=restart_count, url=url, seconds=seconds))

    def ended(
        self, node: int, role: str, rank: int, restart_count: int, exit_code: int | None, failure: FailureReported
    ) -> None:
        self.apply(
            ProcessEndedRequest(
                node_rank=node,
                role=role,
                rank=rank,
                restart_count=restart_count,
                exit_code=exit_code,
                failure=failure,
            )
        )

    def publishes(self, restart_count: int, version: int, replicas: dict[int, int]) -> None:
        self.apply(
            PublishedRequest(
                restart_count=restart_count,
                version=version,
                replicas=replicas,
                fields={"seconds": 0.1, "bytes": 1},
            )
        )

    def trainers_done(self, node: int, restart_count: int) -> None:
        self.apply(TrainersDoneRequest(node_rank=node, restart_count=restart_count))

    def node_left(self, node: int) -> None:
        self.apply(NodeLeftRequest(node_rank=node))

    def node_lost(self, node: int, message: str) -> None:
        self.apply(NodeLostRequest(node_rank=node, failure=FailureReported(message=message)))

    def fail(self, failure: FailureReported) -> None:
        self.apply(FailRequest(failure=failure))

    def signal(self, name: str) -> None:
        self.apply(SignalRequest(name=name))

    def stop(self, reason: StopReason) -> None:
        self.apply(StopRunRequest(reason=reason))

    def cancel(self, reason: str) -> None:
        self.apply(CancelRequest(reason=reason))

    def assignment(self, node: int) -> Assignment:
        return assignment(self.state, node)

    def logged(self, event: str, **fields: Any) -> list[dict[str, Any]]:
        wanted = {"event": event, **fields}.items()
        return [found for found in self.events if wanted <= found.items()]
