"""The table of what may fail and what follows: every row of it is walked, and leads to what it says."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from launcher.config.schema import Config, RestartConfig, SlurmClusterConfig
from launcher.control.model import ENDED, MODEL_READY, STOP_ACKNOWLEDGED, Phase, StopReason, url_key
from launcher.control.model import STORE as STORE_KEY
from launcher.control.policy import POLICY, STORE, Decision, Loss, PolicyRow, When, decide
from launcher.control.preflight_report import Finding, PreflightReport
from launcher.control.protocol import (
    CancelRequest,
    EngineReadyRequest,
    EventRequest,
    FailRequest,
    HeartbeatRequest,
    HelloRequest,
    NodeLeftRequest,
    NodeLostRequest,
    ProcessEndedRequest,
    PublishedRequest,
    PutRequest,
    StopRunRequest,
    TrainersDoneRequest,
)
from launcher.control.state import ControlSettings, ReplicaState, new_state
from launcher.control.transitions import ControlEvent, Tick, apply
from launcher.control.views import assignment, pool
from launcher.events.schema import FailureReported
from launcher.layout import Role
from tests.unit.control.test_recovery import KILLED, RAISED, Run

REFUSED = 2


def row_name(rule: PolicyRow) -> str:
    circumstances = "+".join(sorted(when.name for when in rule.when)) or "otherwise"
    return f"{rule.loss.name}-{rule.role}-{circumstances}-{rule.then.name}".lower()


def arranged(rule: PolicyRow) -> Run:
    """A run in which the circumstances of a row hold, and no others that its loss could depend on."""
    when = rule.when
    restarts = 3 if When.RESTARTS_LEFT in when else 0
    nodes, inference_nodes = (2, 1) if When.ONLY_RANK in when else (4, 2)
    run = Run(
        nodes=nodes,
        inference_nodes=inference_nodes,
        spares=1 if When.SPARE in when or rule.role == Role.SPARE else 0,
        restart=RestartConfig(max_engine_restarts=restarts, max_trainer_restarts=restarts, step_timeout_s=20),
        min_replicas=1 if When.ENOUGH_REPLICAS in when else inference_nodes,
        has_preflight=rule.loss is Loss.PREFLIGHT,
        bad_nodes_fail=When.WARN_ONLY not in when,
        starts=rule.loss is not Loss.PREFLIGHT and When.REFUSED not in when,
    )
    for node in run.layout.all_nodes:
        run.joins(node.node_rank)
    if When.STOPPING in when:
        run.stop(StopReason.REQUEST)
    return run


def node_of(rule: PolicyRow) -> int:
    """A node of the row's role."""
    if rule.role == Role.TRAINER:
        return 0 if When.NODE_0 in rule.when else 1
    return 2 if rule.role == Role.INFERENCE else 4


def lose(run: Run, rule: PolicyRow) -> None:
    """The loss of a row."""
    exit_code = REFUSED if When.REFUSED in rule.when else RAISED if When.AT_STARTUP in rule.when else KILLED
    match rule.loss:
        case Loss.PROCESS if rule.role == Role.INFERENCE:
            run.engine_ends(0, exit_code)
        case Loss.PROCESS if rule.role == Role.TRAINER:
            run.trainer_ends(0, exit_code)
        case Loss.PROCESS:
            name = STORE if rule.role == STORE else "model"
            run.ended(0, name, 0, 0, exit_code, FailureReported(message=f"{name} ended"))
        case Loss.STEP:
            run.emit("step", step=1)
            run.passes(22)
        case Loss.NODE:
            run.loses(node_of(rule))
        case Loss.PREFLIGHT:
            everybody = [node.node_rank for node in run.layout.all_nodes]
            bad = everybody if When.EVERYWHERE in rule.when else [node_of(rule)]
            for rank in everybody:
                finding = Finding(name="gpus", ok=rank not in bad, text="7 of 8 GPUs")
                run.preflight(PreflightReport(node_rank=rank, seconds=1, findings=(finding,)))


def observed(run: Run) -> Decision:
    """What followed, as the state and the log show it."""
    if run.phase in ENDED:
        assert run.state.failure is not None
        return Decision.REQUEUE if run.state.failure.requeue else Decision.FAIL
    assert run.phase is Phase.RUNNING
    states = {record.state for record in run.state.replicas}
    is_logged = run.logged("failure", first=False) or run.logged("node_lost") or run.logged("preflight", ok=False)
    signs = (
        (bool(run.logged("spare")), Decision.REPLACE_NODE),
        (ReplicaState.DROPPED in states, Decision.DROP_REPLICAS),
        (run.state.trainers.restart_count > 0, Decision.RESTART_TRAINERS),
        (ReplicaState.RESTARTING in states, Decision.RESTART_REPLICA),
        (run.state.trainers.held_failure is not None, Decision.HOLD),
        (bool(is_logged), Decision.LOG),
    )
    return next(decision for holds, decision in signs if holds)


@pytest.mark.parametrize("rule", POLICY, ids=row_name)
def test_every_row_leads_to_its_decision(rule: PolicyRow) -> None:
    assert decide(rule.loss, rule.role, rule.when) is rule  # no row before it hides it
    run = arranged(rule)
    lose(run, rule)
    assert observed(run) is rule.then


def test_every_loss_of_every_role_has_a_row_whatever_the_circumstances() -> None:
    pairs = {(rule.loss, rule.role) for rule in POLICY}
    assert all(not decide(loss, role, frozenset()).when for loss, role in pairs)
    for loss in (Loss.NODE, Loss.PREFLIGHT):
        assert {role for found, role in pairs if found is loss} == {Role.TRAINER, Role.INFERENCE, Role.SPARE}
    processes = {role for found, role in pairs if found is Loss.PROCESS}
    assert processes == {Role.TRAINER, Role.INFERENCE, Role.HELPER, STORE}


def test_every_decision_and_every_circumstance_is_in_the_table() -> None:
    assert {rule.then for rule in POLICY} == set(Decision)
    assert {when for rule in POLICY for when in rule.when} == set(When)


def test_every_setting_in_the_table_exists() -> None:
    config: Any = dataclasses.replace(Config(), cluster=SlurmClusterConfig())
    for rule in POLICY:
        for setting in rule.settings:
            value = config
            for name in setting.split("."):
                assert hasattr(value, name), f"{row_name(rule)}: {setting}"
                value = getattr(value, name)


FAILURE = FailureReported(message="boom")


def events() -> st.SearchStrategy[ControlEvent]:
    nodes, counts, replicas = st.integers(0, 4), st.integers(0, 2), st.integers(0, 1)
    return st.one_of(
        st.just(Tick()),
        st.builds(HelloRequest, node_rank=nodes, hostname=st.just("h"), address=st.just("a")),
        st.builds(HeartbeatRequest, node_rank=nodes, phase=st.just(Phase.RUNNING)),
        st.builds(EngineReadyRequest, replica=replicas, restart_count=counts, url=st.just("u"), seconds=st.just(1.0)),
        st.builds(
            ProcessEndedRequest,
            node_rank=nodes,
            role=st.sampled_from(["trainer", "inference", "store", "model"]),
            rank=replicas,
            restart_count=counts,
            exit_code=st.sampled_from([None, -9, 1, 2]),
            failure=st.just(FAILURE),
        ),
        st.builds(PublishedRequest, restart_count=counts, version=counts, replicas=st.just({0: 0, 1: 0})),
        st.builds(TrainersDoneRequest, node_rank=nodes, restart_count=counts),
        st.builds(NodeLeftRequest, node_rank=nodes),
        st.builds(NodeLostRequest, node_rank=nodes, failure=st.just(FAILURE)),
        st.builds(FailRequest, failure=st.just(FAILURE)),
        st.builds(StopRunRequest, reason=st.sampled_from(StopReason)),
        st.builds(CancelRequest, reason=st.just("SIGTERM")),
        st.builds(
            PutRequest,
            key=st.sampled_from([MODEL_READY, STORE_KEY, STOP_ACKNOWLEDGED, url_key(0), url_key(1)]),
            value=st.just("x:1"),
        ),
        st.builds(
            EventRequest, event=st.just("checkpoint"), fields=st.builds(dict, state=st.sampled_from(["begin", "end"]))
        ),
    )


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])  # the machine may be busy
@given(st.lists(st.tuples(events(), st.floats(0, 30)), max_size=60))
def test_whatever_happens_the_state_is_consistent_and_the_same_events_lead_to_the_same_state(
    history: list[tuple[ControlEvent, float]],
) -> None:
    layout = Run(spares=1, starts=False).layout
    control = ControlSettings(layout=layout, start_timeout_s=60, lease_timeout_s=10)
    now, state = 0.0, new_state(control, 0.0)
    for node in layout.all_nodes:
        apply(state, HelloRequest(node_rank=node.node_rank, hostname="h", address="a"), now)
    for event, seconds in history:
        now += seconds
        before, twin = state.phase, copy.deepcopy(state)
        assert apply(state, event, now) == apply(twin, event, now)
        assert state == twin
        assert list(Phase).index(state.phase) >= list(Phase).index(before)
        assert before not in ENDED or state.phase is before
        held = {slot: rank for slot, rank in enumerate(state.slots) if rank is not None}
        assert held == {node.slot: rank for rank, node in enumerate(state.nodes) if node.slot is not None}
        assert (state.phase is Phase.FAILED) <= (state.failure is not None)
        for rank, node in enumerate(state.nodes):
            found = assignment(state, rank)
            assert found.is_fenced == node.is_lost
            assert found.trainers is None or not node.is_lost
        assert all(member.url is not None for member in pool(state) if member.serves)
