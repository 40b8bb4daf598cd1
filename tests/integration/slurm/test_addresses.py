"""The address under which a node's peers reach it, on a real SLURM whose nodes have networks of their own."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm_cluster.cluster import SlurmCluster
from tests.slurm_cluster.spec import missing_requirements

pytestmark = pytest.mark.slurm
ROOT = Path(__file__).parents[3]
PROGRAM = """
from launcher.node.context import node_environment, own_address
node = node_environment()
print(node.hostname, own_address(node))
"""


@pytest.fixture
def separated(request: pytest.FixtureRequest) -> Iterator[SlurmCluster]:
    cluster = SlurmCluster("node[0-1]", isolation=request.param)
    if not os.environ.get("CI") and (missing := missing_requirements(cluster.spec)):
        pytest.skip("; ".join(missing))
    with cluster:
        yield cluster


def addresses(cluster: SlurmCluster, folder: Path) -> dict[str, str]:
    """The address of each node, as the node itself finds it in a job."""
    step = shlex.join(["srun", sys.executable, "-c", PROGRAM])
    words = ["sbatch", "--wait", "--nodes=2", "--ntasks-per-node=1", "--mem=1G", f"--output={folder / 'out'}"]
    cluster.run([*words, f"--wrap={step}"], PYTHONPATH=str(ROOT))
    return dict(line.split() for line in (folder / "out").read_text().splitlines())


@pytest.mark.parametrize("separated", ["net6"], indirect=True)
def test_nodes_that_have_addresses_of_ipv6_alone(separated: SlurmCluster, tmp_path: Path) -> None:
    assert addresses(separated, tmp_path) == {"node0": "fd00:77::1", "node1": "fd00:77::2"}


@pytest.mark.parametrize("separated", ["net"], indirect=True)
def test_a_node_whose_own_name_is_on_the_loopback_and_that_has_no_way_out(
    separated: SlurmCluster, tmp_path: Path
) -> None:
    """nebius/nebius-solutions-library#177; Debian installs hosts like that."""
    assert separated.directory is not None
    hosts = (separated.directory / "etc" / "hosts").read_text()
    for name in separated.spec.node_names:
        own = tmp_path / name
        own.write_text(re.sub(rf"^\S+ {name}$", f"127.0.1.1 {name}", hosts, flags=re.MULTILINE))
        pid = (separated.directory / "nodes" / name).read_text()
        subprocess.run(
            ["nsenter", "--target", pid, "--mount", "--", "mount", "--bind", str(own), "/etc/hosts"], check=True
        )
    assert addresses(separated, tmp_path) == {"node0": "10.77.0.1", "node1": "10.77.0.2"}
