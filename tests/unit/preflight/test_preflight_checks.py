"""The single checks: on this machine where it can be made to fail, on real output of the driver's tool elsewhere."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from launcher.common.codec import from_builtins, to_builtins
from launcher.common.ports import hold_free_port, port_of
from launcher.config.schema import Config, LayoutConfig
from launcher.layout import plan
from launcher.preflight import peers
from launcher.preflight.checks import (
    check_cpus,
    check_disk,
    check_memlock,
    check_model,
    check_nofile,
    check_ports,
    check_shm,
    code_digest,
    facts,
    home_problem,
    ptrace_finding,
    write_problem,
)
from launcher.preflight.context import ALONE, CheckContext
from launcher.preflight.gpus import (
    count_problems,
    error_problems,
    memory_problems,
    mig_devices,
    parse_gpus,
    parse_processes,
    visible,
)
from launcher.preflight.peers import Canary, Peer, Probe, clock_offset, clock_skew, connect, resolve
from launcher.preflight.runner import CHECKS

SMI = """\
0, GPU-11111111-aaaa, 00000000:1B:00.0, NVIDIA H200, 143771, 0, 0, 570.86.10
1, GPU-22222222-bbbb, 00000000:43:00.0, NVIDIA H200, 143771, 51234, 2, 570.86.10
2, GPU-33333333-cccc, 00000000:52:00.0, NVIDIA H200, 143771, 40000, [N/A], 570.86.10
"""
SMI_PROCESSES = "GPU-22222222-bbbb, 4711, python3, 51226\n"
KERNEL = [
    "6,1234,5678,-;NVRM: Xid (PCI:0000:52:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.",
    "6,1235,5679,-;NVRM: Xid (PCI:0000:1b:00): 31, pid=99, name=python, MMU Fault",
    "6,1236,5680,-;NVRM: Xid (PCI:0000:99:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.",
]


@pytest.fixture
def site(tmp_path: Path) -> CheckContext:
    config = Config(layout=LayoutConfig(device="cpu", gpus_per_node=1))
    layout = plan(config)
    return CheckContext(
        config=config,
        layout=layout,
        node=layout.nodes[1],
        run_dir=tmp_path,
        attempt_dir=tmp_path,
        model_path=None,
        address="127.0.0.1",
        scratch=tmp_path,
        is_simulated=True,
    )


@pytest.mark.parametrize(
    ("processes", "ok", "beginning"),
    [
        (1, True, "1 CPUs for 1 processes"),
        (4, True, "warning: 1 CPUs for 4 processes: set `cluster.cpus_per_task`"),
        (8, False, "1 CPUs for 8 processes: set `cluster.cpus_per_task`"),
    ],
)
def test_slurms_default_of_one_cpu_is_too_few(site: CheckContext, processes: int, ok: bool, beginning: str) -> None:
    layout = plan(Config(layout=LayoutConfig(device="cpu", gpus_per_node=processes)))
    before = os.sched_getaffinity(0)
    assert len(before) < (os.cpu_count() or 1) or len(before) > 1, "on one CPU nothing can be bound to fewer"
    os.sched_setaffinity(0, {min(before)})
    try:
        found = check_cpus(replace(site, layout=layout, node=layout.nodes[0]))
    finally:
        os.sched_setaffinity(0, before)
    assert found.ok is ok
    assert found.text.startswith(beginning)


def test_the_names_that_can_be_skipped_are_the_checks_there_are() -> None:
    assert tuple(CHECKS) == ALONE


def test_a_limit_that_is_too_low_is_named_with_its_setting(site: CheckContext) -> None:
    for check, setting, value in (
        (check_shm, "min_shm_gb", 1e6),
        (check_nofile, "min_nofile", 1 << 40),
        (check_disk, "min_disk_gb", 1e6),
    ):
        assert check(site).ok, check(site).text
        setattr(site.config.preflight, setting, value)
        finding = check(site)
        assert not finding.ok
        assert f"`preflight.{setting}`" in finding.text
    assert check_memlock(site).ok


def test_a_model_that_cannot_be_read_is_named(site: CheckContext, tmp_path: Path) -> None:
    here = replace(site, model_path=tmp_path / "model")
    finding = check_model(here)
    assert not finding.ok
    assert "No such file or directory" in finding.text
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    assert check_model(here).ok


def test_a_taken_port_is_a_failure_only_where_ports_are_strict(site: CheckContext) -> None:
    with hold_free_port(site.address) as sock:
        site.config.inference.base_port = port_of(sock)
        taken = replace(site, layout=plan(site.config))
        assert check_ports(taken).ok
        assert f"port {port_of(sock)}" in check_ports(taken).text
        site.config.inference.strict_ports = True
        assert not check_ports(taken).ok
    assert check_ports(taken).ok


def test_every_gpu_trouble_is_told_once_and_others_gpus_are_not_ours() -> None:
    gpus = parse_gpus(SMI)
    processes = parse_processes(SMI_PROCESSES)
    assert list(count_problems(gpus, 3)) == []
    assert list(count_problems(gpus, 8)) == ["3 of 8 planned GPUs are there"]
    assert list(memory_problems(gpus, processes, 0.05)) == [
        "GPU 1 is used by python3 (pid 4711)",
        "GPU 2 has 40000 of 143771 MiB in use, by no process that can be seen",
    ]
    assert list(error_problems(gpus, [*KERNEL, KERNEL[0]])) == [
        "GPU 1 has 2 uncorrected memory errors",
        "GPU 2 had Xid 79",
    ]
    assert [gpu.index for gpu in visible(gpus, "0,2")] == [0, 2]
    assert [gpu.index for gpu in visible(gpus, "GPU-2222")] == [1]
    assert len(visible(gpus, None)) == 3


def test_facts_hold_versions_and_a_digest_that_every_change_of_the_code_changes(tmp_path: Path) -> None:
    found = facts()
    assert found["torch"].startswith("2.")
    assert found["nvidia-nccl-cu12"]
    (tmp_path / "a.py").write_text("x = 1")
    before = code_digest(tmp_path)
    (tmp_path / "a.py").write_text("x = 2")
    assert code_digest(tmp_path) != before
    shutil.copyfile(tmp_path / "a.py", tmp_path / "b.py")
    (tmp_path / "a.py").unlink()
    assert len({before, code_digest(tmp_path), found["code"]}) == 3


def test_a_clock_that_is_off_is_found_through_a_slow_connection() -> None:
    import time

    offset, error = clock_offset(lambda: time.time() - 5.0)
    assert abs(offset - 5.0) <= error + 1e-3
    complaint = clock_skew(offset, error, 2.0)
    assert complaint is not None
    assert "clock 5.0 s ahead of node 0's" in complaint.text
    assert clock_skew(2.5, 0.6, 2.0) is None
    assert clock_skew(-1.0, 0.0, 2.0) is None


def test_a_canary_is_seen_by_the_others_or_complained_about(tmp_path: Path) -> None:
    canaries = [Canary(tmp_path, rank) for rank in range(3)]
    for written in canaries[:2]:
        written.write()
    words = {rank: item.token for rank, item in enumerate(canaries)}
    assert peers.read_canaries(tmp_path, {0: words[0], 1: words[1]}, timeout_s=0) == []
    for complaints in (
        peers.read_canaries(tmp_path, words, timeout_s=0),
        peers.list_canaries(tmp_path, words, timeout_s=0),
    ):
        assert [complaint.about for complaint in complaints] == [2]
    for item in canaries:
        item.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_canary_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / peers.CANARIES).write_text("in the way")
    with pytest.raises(OSError, match="exists"):
        Canary(tmp_path, 0).write()


def peer(port: int, *, hostname: str = "localhost", stack: str = "other", rank: int = 3) -> Peer:
    made = Peer(node_rank=rank, hostname=hostname, address="127.0.0.1", port=port, stack=stack, canary="x")
    return from_builtins(to_builtins(made), Peer)


def test_a_probe_answers_for_its_node_only() -> None:
    probe = Probe("127.0.0.1", 3)
    assert connect(peer(probe.port), timeout_s=20) is None
    wrong = connect(peer(probe.port, rank=4), timeout_s=20)
    assert wrong is not None
    assert "another program" in wrong.text
    probe.close()
    gone = connect(peer(probe.port), timeout_s=20)
    assert gone is not None
    assert "cannot be reached at 127.0.0.1" in gone.text


def test_a_name_on_the_loopback_is_wrong_only_for_a_node_elsewhere() -> None:
    assert resolve(peer(1, stack="mine"), "mine") is None
    found = resolve(peer(1), "mine")
    assert found is not None
    assert "127.0.0.1" in found.text
    missing = resolve(peer(1, hostname="no-such-host.invalid"), "mine")
    assert missing is not None
    assert "does not resolve" in missing.text


def test_a_probe_that_never_answers_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        complaint = connect(peer(mute.getsockname()[1]), timeout_s=0.2)
    assert complaint is not None
    assert "no answer within 0.2 s" in complaint.text


def test_mig_devices_are_counted_and_not_taken_for_missing_gpus() -> None:
    assert mig_devices("MIG-aaaa,MIG-GPU-11111111-aaaa/1/0") == ["MIG-aaaa", "MIG-GPU-11111111-aaaa/1/0"]
    assert mig_devices("0,1") == mig_devices(None) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of its own with a handful of inodes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m,nr_inodes=8", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode and not os.environ.get("CI"):
        pytest.skip(f"this machine cannot mount a filesystem: {done.stderr}")
    assert done.returncode == 0, done.stderr
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_without_inodes_a_full_one_and_a_read_only_one(small_disk: Path) -> None:
    assert write_problem(small_disk) == "7 inodes left of 8"
    subprocess.run(["mount", "-o", "remount,size=8k,nr_inodes=100000", str(small_disk)], check=True)
    assert write_problem(small_disk) is None
    (small_disk / "full").write_bytes(bytes(8192))
    assert write_problem(small_disk) == "No space left on device"
    assert home_problem({"HOME": str(small_disk)}) == (
        f"the home directory {small_disk} cannot be written: No space left on device"
    )
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert write_problem(small_disk) == "Read-only file system"


def test_a_home_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert home_problem({}) == "`HOME` is not set"
    assert home_problem({"HOME": str(tmp_path / "absent")}) == f"the home directory {tmp_path}/absent is not here"
    assert home_problem({"HOME": str(tmp_path)}) is None


@pytest.mark.parametrize(
    ("scope", "text"),
    [("0\n", "ptrace_scope is 0"), ("3\n", "warning: kernel.yama.ptrace_scope is 3: CUDA IPC"), ("", "not restricted")],
)
def test_where_processes_may_not_open_each_others_descriptors(tmp_path: Path, scope: str, text: str) -> None:
    (tmp_path / "scope").write_text(scope)
    found = ptrace_finding(tmp_path / "scope")
    assert found.ok
    assert found.text.startswith(text)
