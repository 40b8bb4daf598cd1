"""Node lists in every form that SLURM writes."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from launcher.slurm.nodelist import expand_nodelist

FORMS = {
    "": [],
    "gpu-01": ["gpu-01"],
    "gpu-[01-03]": ["gpu-01", "gpu-02", "gpu-03"],
    "gpu[8-11]": ["gpu8", "gpu9", "gpu10", "gpu11"],
    "gpu[08-11]": ["gpu08", "gpu09", "gpu10", "gpu11"],
    "gpu[1,5-7]-ib,login": ["gpu1-ib", "gpu5-ib", "gpu6-ib", "gpu7-ib", "login"],
    "rack[0-1]n[01-02]": ["rack0n01", "rack0n02", "rack1n01", "rack1n02"],
    "a[1],b[2-3],c": ["a1", "b2", "b3", "c"],
    "n[9-10],m[099-101]": ["n9", "n10", "m099", "m100", "m101"],
    "node-a.cluster.example,node-b.cluster.example": ["node-a.cluster.example", "node-b.cluster.example"],
    "x[0-1][0-1]": ["x00", "x01", "x10", "x11"],
}


@pytest.mark.parametrize("text", FORMS)
def test_each_form_is_expanded_in_order(text: str) -> None:
    assert expand_nodelist(text) == FORMS[text]


@pytest.mark.parametrize("text", ["n[1-2", "n1-2]", "n[2-1]", "n[a-b]", "n[[1]]", "a,,b", "n[]", ",a", "n[1;2]"])
def test_what_is_no_node_list_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a node list"):
        expand_nodelist(text)


@pytest.mark.slurm
def test_scontrol_expands_them_alike(tmp_path: Path) -> None:
    conf = tmp_path / "slurm.conf"
    conf.write_text("ClusterName=none\nSlurmctldHost=localhost\n")
    for text, names in FORMS.items():
        # An empty list is no argument, and what follows a bracket is beyond `scontrol` of some releases.
        if not text or "-ib" in text:
            continue
        command = ["scontrol", "show", "hostnames", text]
        done = subprocess.run(
            command, env={**os.environ, "SLURM_CONF": str(conf)}, capture_output=True, text=True, check=True
        )
        assert done.stdout.split() == names, text
