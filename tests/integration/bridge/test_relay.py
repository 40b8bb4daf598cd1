"""Replicas that pass weights on to each other: what they serve, what the trainer saves, what a lost relay leads to."""

from __future__ import annotations

import signal

import pytest

from tests.integration.bridge.mini_cluster import MiniCluster, fault

SLACK_S = 30.0
"""For a busy machine."""


def test_replicas_on_more_nodes_than_the_trainer_has_pass_the_weights_on() -> None:
    with MiniCluster(nodes=(1, 2, 3), workers=2, ranks=2, settings={"round_bytes": 4096}) as scene:
        for version in (1, 2, 3):
            report = scene.publish(version)
            assert report["replicas"] == 3, report
            assert scene.values() == [[version]] * 3
            # Each of the two ranks holds everything and sends half of it, once: to one replica of three.
            assert report["bytes"] == scene.tensors * scene.rows * scene.columns * 4
        scene.close()


def test_a_relay_passes_on_whole_versions_of_which_it_gets_the_changes() -> None:
    with MiniCluster(nodes=(1, 2, 3), settings={"round_bytes": 4096, "update": "delta"}) as scene:
        assert [scene.publish(version)["density"] for version in (1, 2, 3)] == [None, 1.0, 1.0]
        assert scene.values() == [[3]] * 3
        scene.close()


def test_without_relays_the_trainer_sends_to_every_replica() -> None:
    with MiniCluster(nodes=(1, 2, 3), settings={"relay": "off"}) as scene:
        report = scene.publish(1)
        assert report["bytes"] == 3 * scene.tensors * scene.rows * scene.columns * 4
        assert scene.values() == [[1]] * 3
        scene.close()


@pytest.mark.parametrize(
    ("transport", "at"),
    [("auto", "prepare"), ("auto", "receiving"), ("gloo", "receiving"), ("auto", "commit"), ("auto", "commit done")],
)
def test_who_is_fed_by_a_relay_that_dies_gets_the_same_version_from_the_trainer(transport: str, at: str) -> None:
    settings = {"round_bytes": 4096, "transport": transport}
    with MiniCluster(nodes=(1, 2, 3), settings=settings) as scene:
        assert scene.publish(1)["replicas"] == 3
        fault(scene.replicas[0], at, signal.SIGKILL, count=9 if at == "receiving" else 0)
        report = scene.publish(2)
        assert report["replicas"] == 2, report
        assert report["took_s"] < 90.0  # By far less than the deadline: the relay's end is seen at once.
        assert scene.values()[1:] == [[2], [2]]
        scene.restart(0)
        assert scene.publish(3)["replicas"] == 3
        assert scene.values() == [[3]] * 3
        scene.close()


def test_who_is_fed_by_a_relay_that_hangs_gets_the_version_once_the_deadline_is_over() -> None:
    with MiniCluster(nodes=(1, 2, 3), settings={"round_bytes": 4096, "timeout_s": 3.0}) as scene:
        assert scene.publish(1)["replicas"] == 3
        fault(scene.replicas[0], "receiving", signal.SIGSTOP, count=9)
        report = scene.publish(2)
        assert report["replicas"] == 2, report
        assert report["took_s"] < 3.0 + SLACK_S
        assert scene.values()[1:] == [[2], [2]]
        scene.close()


def test_a_child_that_hangs_holds_up_neither_its_relay_nor_what_that_serves() -> None:
    with MiniCluster(nodes=(1, 2, 3), settings={"round_bytes": 4096, "timeout_s": 3.0}) as scene:
        assert scene.publish(1)["replicas"] == 3
        fault(scene.replicas[2], "receiving", signal.SIGSTOP, count=9)
        report = scene.publish(2)
        assert report["replicas"] == 2, report
        assert scene.values()[:2] == [[2], [2]]
        scene.restart(2)
        assert scene.publish(3)["replicas"] == 3
        assert scene.values() == [[3]] * 3
        scene.close()
