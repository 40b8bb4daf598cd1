"""An update in which somebody is killed or stops, at every step of it: who is left serves one whole version."""

from __future__ import annotations

import itertools
import signal

import pytest

from tests.integration.bridge.mini_cluster import MiniCluster, fault

KILL_OR_STOP = pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
JOINING = ("bind", "bind done", "connect", "connect done")
UPDATING = ("prepare", "prepare done", "receiving", "status", "status done", "commit", "commit done")
"""Where a replica is when it is lost."""

PUBLISHING = (
    *("bind", "bind done", "connect", "connect done", "prepare", "prepare done", "sending"),
    *("vote", "vote done", "commit", "commit done"),
)
"""Where a trainer is when it is lost."""


@KILL_OR_STOP
def test_replicas_lost_at_every_step_cost_the_trainer_a_deadline_and_the_others_nothing(number: signal.Signals) -> None:
    """All at once, each at another step: one healthy replica, and one for every step."""
    states = (None, *JOINING, *UPDATING)
    # Of a stopped process nobody learns before the deadline; the healthy one must have time on a busy machine.
    timeout_s = 6.0 if number == signal.SIGSTOP else 60.0
    settings = {"relay": "off", "round_bytes": 4096, "timeout_s": timeout_s}
    with MiniCluster(nodes=[1] * len(states), settings=settings) as scene:
        for replica, state in zip(scene.replicas, states, strict=True):
            if state in JOINING:
                fault(replica, state, number)
        answer = scene.publish(1)
        assert "replicas" in answer, answer
        assert answer["replicas"] >= 1 + len(UPDATING) - len(JOINING)
        served = [i for i, values in enumerate(scene.values()) if values == [1]]
        assert 0 in served
        for replica, state in zip(scene.replicas, states, strict=True):
            if state in UPDATING and replica.is_sound:
                fault(replica, state, number, count=5 if state == "receiving" else 0)
        report = scene.publish(2)
        assert report["replicas"] >= 1, report
        # Joining, its first exchange, an update and its commit have a deadline each.
        assert report["took_s"] < 6 * timeout_s + 60.0
        for replica in scene.replicas:
            # One that is killed counts as living for a moment after its connections have ended.
            if replica.is_sound or (replica.lives and number == signal.SIGSTOP):
                replica.signal(signal.SIGCONT)
                assert len(replica.call_out_of_order("values")["values"]) == 1
        assert scene.replicas[0].call("values") == {"values": [2]}
        for index, replica in enumerate(scene.replicas):
            if not replica.is_sound:
                scene.restart(index)
        assert scene.publish(3)["replicas"] == len(states)
        assert scene.values() == [[3]] * len(states)


@KILL_OR_STOP
def test_a_trainer_lost_at_every_step_leaves_whole_versions_and_is_not_listened_to_again(
    number: signal.Signals,
) -> None:
    versions = itertools.count(1)
    with MiniCluster(nodes=(1, 2), settings={"round_bytes": 4096, "min_replicas": 2, "timeout_s": 60.0}) as scene:
        before = 0.0
        restarts = itertools.count(1)
        for state in PUBLISHING:
            # A new one, which has not joined.
            scene.start_trainer(restart_count=next(restarts))
            (trainer,) = scene.trainers
            lost = next(versions)
            fault(trainer, state, number, count=3 if state == "sending" else 0)
            trainer.send_command("publish", version=lost)
            assert trainer.next_answer() == {"held": state}
            for values in scene.values():
                assert values in ([before], [lost])
            # Those that are started in its place take no notice of how far it came.
            if number == signal.SIGSTOP:
                scene.trainers.clear()
            scene.start_trainer(restart_count=next(restarts))
            now = next(versions)
            assert scene.publish(now)["replicas"] == 2
            if number == signal.SIGSTOP:
                trainer.signal(signal.SIGCONT)
                # One that was told of the commit has nothing left to say to anybody.
                assert "error" in trainer.next_answer() or state == "commit done", state
                trainer.end()
            assert scene.values() == [[now], [now]]
            before = now
        scene.close()
