"""Bad nodes that are remembered: by any number of runs at once, for a while, and left out of the next submission."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from launcher.cli import main
from launcher.config.schema import Config, LayoutConfig, PreflightConfig, SlurmClusterConfig
from launcher.control.preflight_report import BadNode
from launcher.preflight.bad_nodes import CLUSTER_VARIABLE, BadNodeCache, BadNodeEntry, default_bad_node_dir, remember
from launcher.submit.prepare import leave_out_bad_nodes
from tests.unit.slurm_tools import tool, tools

__all__ = ["tools"]

FAR = 1e11


def entry(node: str, *, cluster: str = "alpha", expires: float = FAR, reason: str = "shm: full") -> BadNodeEntry:
    return BadNodeEntry(cluster=cluster, node=node, reason=reason, time=1.0, expires=expires, run_dir="/runs/a")


def bad(hostname: str, *, is_its_own: bool = True) -> BadNode:
    return BadNode(node_rank=1, hostname=hostname, checks=("shm",), reason="shm: full", is_its_own=is_its_own)


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BadNodeCache:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return BadNodeCache(default_bad_node_dir())


def test_what_expires_is_forgotten(memory: BadNodeCache) -> None:
    memory.remember(entry("gpu-1", expires=100.0))
    memory.remember(entry("gpu-2"))
    assert [e.node for e in memory.entries(now=99.0)] == ["gpu-1", "gpu-2"]
    assert [e.node for e in memory.entries(now=101.0)] == ["gpu-2"]
    assert [e.node for e in memory.entries(now=99.0)] == ["gpu-2"]


def test_runs_that_write_at_once_lose_nothing(memory: BadNodeCache) -> None:
    def write(names: list[str]) -> None:
        for name in names:
            memory.remember(entry(name))

    groups = [[f"node-{group}-{i}" for i in range(20)] + ["everybodys"] for group in range(4)]
    threads = [threading.Thread(target=write, args=(names,)) for names in groups]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {e.node for e in memory.entries()} == {name for names in groups for name in names}


def test_a_damaged_file_is_passed_over(memory: BadNodeCache) -> None:
    memory.remember(entry("gpu-1"))
    (default_bad_node_dir() / "nodes" / "alpha" / "gpu-2.json").write_text('{"cluster": "al')
    assert [e.node for e in memory.entries()] == ["gpu-1"]


def test_a_name_cannot_leave_the_directory(memory: BadNodeCache) -> None:
    with pytest.raises(ValueError, match="no name of a node"):
        memory.remember(entry("../../evil"))


def test_only_a_nodes_own_trouble_on_a_cluster_is_remembered(
    memory: BadNodeCache, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nodes = (bad("gpu-1"), bad("gpu-2", is_its_own=False))
    assert remember(nodes, PreflightConfig(), tmp_path) == []
    monkeypatch.setenv(CLUSTER_VARIABLE, "alpha")
    assert remember(nodes, PreflightConfig(bad_node_ttl_s=0), tmp_path) == []
    assert remember(nodes, PreflightConfig(), tmp_path) == ["gpu-1"]
    (found,) = memory.entries("alpha")
    assert (found.node, found.reason, found.run_dir) == ("gpu-1", "shm: full", str(tmp_path))
    assert found.expires - found.time == 86400


def config(**cluster: str) -> Config:
    return Config(layout=LayoutConfig(device="cpu"), cluster=SlurmClusterConfig(**cluster))


@pytest.fixture
def cluster(tools: Path) -> Path:
    tool(
        tools,
        "scontrol",
        'if [ "$2" = config ]; then echo "ClusterName             = alpha"; else printf "gpu-1\\ngpu-2\\n"; fi',
    )
    tool(tools, "sinfo", "printf 'gpu-1\\ngpu-1\\ngpu-2\\ngpu-3\\n'")
    return tools


def test_the_next_submission_leaves_them_out_and_says_so(memory: BadNodeCache, cluster: Path) -> None:
    for item in (entry("gpu-1"), entry("gone"), entry("gpu-3", cluster="beta"), entry("gpu-2", expires=1.0)):
        memory.remember(item)
    changed, told = leave_out_bad_nodes(config(exclude="gpu-[7-9]"))
    assert isinstance(changed.cluster, SlurmClusterConfig)
    assert changed.cluster.exclude == "gpu-[7-9],gpu-1"
    assert changed.preflight.bad_node_dir == str(default_bad_node_dir())
    (line,) = told
    assert line.startswith("leaving out gpu-1 for another ")
    assert "shm: full" in line
    assert "launcher nodes forget gpu-1" in line


def test_a_node_asked_for_by_name_is_left_in(memory: BadNodeCache, cluster: Path) -> None:
    memory.remember(entry("gpu-1"))
    changed, (line,) = leave_out_bad_nodes(config(nodelist="gpu-[1-2]"))
    assert isinstance(changed.cluster, SlurmClusterConfig)
    assert changed.cluster.exclude is None
    assert "`cluster.nodelist` asks for it" in line


def test_with_nothing_remembered_slurm_is_not_asked(memory: BadNodeCache, cluster: Path) -> None:
    _, told = leave_out_bad_nodes(config())
    assert told == []
    assert not (cluster / "calls").exists()


def test_a_controller_that_is_away_is_said(memory: BadNodeCache, tools: Path) -> None:
    memory.remember(entry("gpu-1"))
    tool(tools, "scontrol", "echo 'Unable to contact slurm controller' >&2; exit 1")
    _, (line,) = leave_out_bad_nodes(config())
    assert "not left out" in line
    assert "Unable to contact" in line


def test_the_command_lists_and_forgets(memory: BadNodeCache, capsys: pytest.CaptureFixture[str]) -> None:
    memory.remember(entry("gpu-1"))
    memory.remember(entry("gpu-2", cluster="beta"))
    assert main(["nodes"]) == 0
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()[1:]] == [
        ["gpu-1", "alpha"],
        ["gpu-2", "beta"],
    ]
    assert main(["nodes", "--json", "--cluster", "beta"]) == 0
    assert [e["node"] for e in json.loads(capsys.readouterr().out)] == ["gpu-2"]
    assert main(["nodes", "forget", "gpu-1", "gpu-9"]) == 1
    assert capsys.readouterr().out == "gpu-1 is forgotten\ngpu-9 was not remembered\n"
    assert main(["nodes", "forget", "--all"]) == 0
    assert memory.entries() == []
    assert main(["nodes", "forget"]) == 2
    assert main(["nodes", "list", "gpu-1"]) == 2
