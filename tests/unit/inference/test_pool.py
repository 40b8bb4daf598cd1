"""The engines as a trainer sees them, through the real control service."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from launcher.bridge.settings import BridgeSettings
from launcher.bridge.trainer.api import Bridge
from launcher.bridge.trainer.discovery import CommitRecord, FixedReplicas
from launcher.bridge.trainer.rank_group import RankGroup
from launcher.bridge.trainer.replica_set import ReplicaSet
from launcher.common.env import LAUNCHER_CONTROL, LAUNCHER_TOKEN
from launcher.common.errors import ControlError, TransferError
from launcher.common.keys import new_token
from launcher.common.ports import hold_free_port, port_of
from launcher.config import Config, LayoutConfig
from launcher.control.client import ControlClient
from launcher.control.protocol import EngineReadyRequest, HelloRequest, ProcessEndedRequest, PublishedRequest
from launcher.control.server import ControlServer
from launcher.control.state import ControlSettings, new_state
from launcher.events.schema import Event, FailureReported
from launcher.events.serialize import event_to_dict
from launcher.inference.bridge_run import RunReplicas
from launcher.inference.client import Pool
from launcher.layout import plan

TOKEN = new_token()
LOG: list[Event] = []
"""The events of the test that runs."""


@pytest.fixture
def control(monkeypatch: pytest.MonkeyPatch) -> Iterator[ControlClient]:
    """A run with two replicas that are ready."""
    LOG.clear()
    layout = plan(Config(layout=LayoutConfig(nodes=3, inference_nodes=2, gpus_per_node=1, device="cpu")))
    sock = hold_free_port("127.0.0.1")
    address = f"127.0.0.1:{port_of(sock)}"
    server = ControlServer(
        new_state(ControlSettings(layout=layout, start_timeout_s=60, lease_timeout_s=60), time.monotonic()),
        sock,
        TOKEN,
        log=LOG.append,
    )
    server.start()
    monkeypatch.setenv(LAUNCHER_CONTROL, address)
    monkeypatch.setenv(LAUNCHER_TOKEN, TOKEN)
    client = ControlClient(address, TOKEN)
    for node in range(3):
        client.call(HelloRequest(node_rank=node, hostname=f"host-{node}", address="x"))
    for replica in range(2):
        client.call(ready(replica, 0, f"http://{replica}"))
    yield client
    client.close()
    server.close()


def ready(replica: int, restart_count: int, url: str) -> EngineReadyRequest:
    return EngineReadyRequest(replica=replica, restart_count=restart_count, url=url, seconds=1.0)


def engine_ends(control: ControlClient, replica: int, restart_count: int) -> None:
    control.call(
        ProcessEndedRequest(
            node_rank=replica + 1,
            role="inference",
            rank=replica,
            restart_count=restart_count,
            exit_code=-9,
            failure=FailureReported(message="killed"),
        )
    )


def publish(control: ControlClient, version: int, replicas: dict[int, int]) -> None:
    control.call(PublishedRequest(restart_count=0, version=version, replicas=replicas))


def test_a_url_leaves_when_its_engine_ends_and_is_back_with_the_newest_version(control: ControlClient) -> None:
    pool = Pool(control)
    assert pool.urls() == ["http://0", "http://1"]
    publish(control, 1, {0: 0, 1: 0})
    engine_ends(control, 0, 0)
    assert pool.urls() == ["http://1"]
    restarted = pool.wait(lambda members: members[0].state == "starting", timeout_s=30, what="the restart")
    assert restarted[0].restart_count == 1
    control.call(ready(0, 1, "http://new"))
    assert pool.urls() == ["http://1"]
    publish(control, 2, {0: 1, 1: 0})
    assert pool.urls() == ["http://new", "http://1"]


def test_who_waits_for_engines_learns_of_them_at_once_and_is_told_what_is_missing(control: ControlClient) -> None:
    with closing(Pool.from_environment()) as pool:
        engine_ends(control, 1, 0)
        with pytest.raises(ControlError, match=r"Waited 0\.1 s for all engines: replica 0 ready, replica 1 restarting"):
            pool.wait(lambda members: all(m.is_ready for m in members), timeout_s=0.1, what="all engines")
        timer = threading.Timer(0.3, control.call, (ready(1, 1, "http://b"),))
        pool.wait(lambda members: members[1].state == "starting", timeout_s=30, what="the restart")
        timer.start()
        members = pool.wait(lambda members: all(m.is_ready for m in members), timeout_s=30, what="all engines")
        timer.join()
        assert [member.url for member in members] == ["http://0", "http://b"]


def test_a_replica_that_is_talked_to_is_given_up_when_the_run_has_lost_it(control: ControlClient) -> None:
    with closing(RunReplicas()) as found:
        first, second = found.replicas()
        assert found.failure_reason(first) is None
        engine_ends(control, 0, 0)
        found._latest_at = float("-inf")
        assert found.failure_reason(first) == "Replica 0 is lost: it is restarting."
        assert found.failure_reason(second) is None


def commit(version: int, adapter: str | None, replicas: dict[int, int]) -> CommitRecord:
    return CommitRecord(version=version, adapter=adapter, replicas=replicas, seconds=0.5, bytes=7, density=None)


FIELDS = {"seconds": 0.5, "bytes": 7, "density": None}


def test_every_commit_is_in_the_event_log(control: ControlClient) -> None:
    with closing(RunReplicas()) as found:
        for adapter in (None, "style"):
            found.record(commit(3, adapter, {1: 0}))
    measured = {"seconds": 0.5, "bytes": 7}  # the log leaves out what is None
    logged = [event_to_dict(event) for event in LOG]
    events = [{k: v for k, v in event.items() if k != "time"} for event in logged if "published" in event["event"]]
    assert events == [
        {"event": "published", "version": 3, "replicas": [1], "dropped": [0], **measured},
        {"event": "adapter_published", "adapter": "style", "version": 3, "replicas": [1], "dropped": [], **measured},
    ]


def test_every_commit_without_a_run_is_in_the_journal(tmp_path: Path) -> None:
    replicas = FixedReplicas(("http://a", "http://b"), tmp_path / "commits.jsonl")
    for adapter, version in ((None, 3), ("style", 1), (None, 4)):
        replicas.record(commit(version, adapter, {1: 0, 0: 0}))
    found = [json.loads(line) for line in (tmp_path / "commits.jsonl").read_text().splitlines()]
    assert [(line["event"], line.get("adapter"), line["version"], line["replicas"]) for line in found] == [
        ("published", None, 3, [0, 1]),
        ("adapter_published", "style", 1, [0, 1]),
        ("published", None, 4, [0, 1]),
    ]
    assert found[0]["time"] <= found[2]["time"]
    assert {key: found[1][key] for key in FIELDS} == FIELDS


def test_a_version_waits_for_the_replica_that_comes_back(
    control: ControlClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launcher.bridge.trainer.replica_set.SLICE_S", 0.2)
    settings = BridgeSettings(token=TOKEN, min_replicas=2)
    discovery = RunReplicas()
    replicas = ReplicaSet(settings, RankGroup("127.0.0.1", 5.0), discovery)
    # Replica 1 has it; replica 0 was offered it twice, in vain, and the run has not noticed why.
    replicas._serving, tries = {1: 0}, {(0, 0): 2}
    assert replicas._wait_a_slice(tries) is False
    engine_ends(control, 0, 0)
    assert replicas._wait_a_slice(tries) is None
    control.call(ready(0, 1, "http://0"))
    Pool(control).wait(lambda found: found[0].restart_count == 1, timeout_s=30, what="the restart")
    while replicas._wait_a_slice(tries) is None:
        control.call(ready(0, 1, "http://0"))
    assert replicas._wait_a_slice(tries) is True
    discovery.close()


def test_a_bridge_that_has_published_nothing_asks_the_engines_that_are_there(control: ControlClient) -> None:
    bridge = Bridge(BridgeSettings(token=TOKEN, min_replicas=1, timeout_s=5), RunReplicas())
    with pytest.raises(TransferError, match=r"Replica [01] at http://[01] did not answer `info`"):
        bridge.info()
    bridge.close()
