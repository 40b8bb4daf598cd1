"""Bad nodes on a real SLURM: named before anything is started, remembered, and left out of the next job."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.jobs.launched import ROOT
from tests.integration.jobs.test_slurm_job import submit
from tests.slurm_cluster.cluster import NODES, SlurmCluster

pytestmark = [pytest.mark.slurm, pytest.mark.engine]

LISTEN = (
    "import socket, sys, time; s = socket.create_server((sys.argv[1], 9000)); print('up', flush=True); time.sleep(600)"
)


@pytest.fixture(scope="module")
def separated() -> Iterator[SlurmCluster]:
    with SlurmCluster(NODES, isolation="net") as cluster:
        yield cluster


def on_node(cluster: SlurmCluster, node: str, *command: str | Path) -> list[str]:
    """A command that runs in a node's namespaces."""
    assert cluster.directory is not None
    pid = (cluster.directory / "nodes" / node).read_text().strip()
    return ["nsenter", "--target", pid, "--mount", "--net", "--uts", "--", *map(str, command)]


def address_of(cluster: SlurmCluster, node: str) -> str:
    assert cluster.directory is not None
    lines = [line.split() for line in (cluster.directory / "etc" / "hosts").read_text().splitlines()]
    return next(words[0] for words in lines if node in words[1:])


def test_bad_nodes_end_the_run_before_it_starts_and_are_left_out_of_the_next(
    separated: SlurmCluster, tmp_path: Path, model: Path
) -> None:
    cache = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    quick = ("cluster.wait=true", f"model.path={model}", "trainer.command=[python,-c,pass]")
    assert separated.directory is not None
    hosts = separated.directory / "etc" / "hosts"
    before = hosts.read_text()
    hidden = on_node(separated, "rack0n02", "mount", "-t", "tmpfs", "tmpfs", model)
    subprocess.run(hidden, check=True)
    taken = on_node(separated, "rack1n01", sys.executable, "-c", LISTEN, address_of(separated, "rack1n01"))
    with subprocess.Popen(taken, stdout=subprocess.PIPE) as listener:
        try:
            assert listener.stdout is not None
            assert listener.stdout.readline() == b"up\n"
            # In place: the nodes see this very file.
            hosts.write_text(before.replace(address_of(separated, "rack1n02"), "127.0.0.1"))
            shape = ("layout.nodes=4", "layout.inference_nodes=2", "inference.strict_ports=true")
            begin = time.monotonic()
            job = submit(separated, tmp_path, *quick, *shape, env=cache)
            print(f"{time.monotonic() - begin:.1f} s from the command to its end")
        finally:
            listener.kill()
            hosts.write_text(before)
            subprocess.run(on_node(separated, "rack0n02", "umount", model), check=True)
    assert job.code == 7, job.output
    separated.wait_empty()
    assert "Preflight failed on 3 nodes of 4; no worker was started." in job.output
    (finished,) = [e for e in job.events if e["event"] == "finished"]
    assert finished["outcome"] == "failed"
    assert not [e for e in job.events if e["event"] == "process"], "something was started"
    (failure,) = [e for e in job.events if e["event"] == "failure"]
    lines = {line.split()[1]: line for line in failure["tail"][1:]}
    assert lines.keys() == {"rack0n02", "rack1n01", "rack1n02"}
    assert all(line in job.output for line in lines.values()), job.output
    assert "model: `model.path` cannot be read here: No such file or directory" in lines["rack0n02"]
    assert "ports: port 9000 on" in lines["rack1n01"]
    assert "names: its name resolves to 127.0.0.1, a loopback address (seen from" in lines["rack1n02"]
    healthy = [e for e in job.events if e["event"] == "preflight" and e["ok"]]
    assert [e["hostname"] for e in healthy] == ["rack0n01"]

    listed = separated.run([sys.executable, "-m", "launcher", "nodes", "--json"], PYTHONPATH=str(ROOT), **cache)
    assert {entry["node"]: entry["run_dir"] for entry in json.loads(listed.stdout)} == dict.fromkeys(
        lines, str(job.run_dir)
    )
    again = submit(
        separated, tmp_path, *quick, "layout.nodes=1", "layout.inference_nodes=0", "layout.gpus_per_node=2", env=cache
    )
    assert again.code == 0, again.output
    for name in lines:
        assert f"leaving out {name} for another " in again.output
    assert again.event("node_up")["hostname"] == "rack0n01"
    assert again.event("preflight")["ok"]
    took = again.event("phase", phase="preflight", state="end")["time"]
    took -= again.event("phase", phase="preflight", state="begin")["time"]
    print(f"preflight of a healthy node took {took:.2f} s")
    assert again.event("preflight")["seconds"] < 10
