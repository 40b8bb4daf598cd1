"""Renders the configuration files of one cluster from a spec and its place on this machine; and its database."""

from __future__ import annotations

import getpass
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tests.slurm_cluster.spec import ClusterError, ClusterSpec, Isolation

FIRST_PORT, PORTS_PER_SLOT, SLOTS = 17_000, 512, 30  # ends below the ephemeral ports


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterPlace:
    """Where one cluster lives: a directory, a block of ports and addresses that no other cluster uses."""

    directory: Path
    slot: int
    """Number of the port block that this cluster holds."""

    port: int
    """First port of the block: slurmctld's; then slurmdbd, MariaDB, and from +10 one per slurmd."""

    @property
    def munge_socket(self) -> Path:
        """Where munged and all its clients meet."""
        return self.directory / "run" / "munge.sock"

    @property
    def slurm_conf(self) -> Path:
        """What ``SLURM_CONF`` points to."""
        return self.directory / "etc" / "slurm.conf"

    @property
    def stepd(self) -> Path:
        """What slurmd starts for each job step."""
        return self.directory / "etc" / "slurmstepd"

    def log(self, name: str) -> Path:
        """Log of one daemon."""
        return self.directory / "log" / f"{name}.log"


def controller_address(spec: ClusterSpec) -> str:
    """Address of slurmctld, and of the login node."""
    if spec.isolation is Isolation.NET6:
        return "fd00:77::ffff"
    return "10.77.255.1" if spec.isolation is Isolation.NET else "127.0.0.1"


def node_address(spec: ClusterSpec, place: ClusterPlace, index: int) -> str:
    """Address of one node: in its own network, or on the loopback, where all of 127/8 exists without set-up."""
    if spec.isolation is Isolation.NET6:
        return f"fd00:77::{index + 1:x}"
    high, low = divmod(index, 250)
    if spec.isolation is Isolation.NET:
        return f"10.77.{high}.{low + 1}"
    return f"127.77.{2 * place.slot + high}.{low + 1}"


def render_hosts(spec: ClusterSpec, place: ClusterPlace) -> str:
    """``/etc/hosts`` of every node and of the login node."""
    lines = ["127.0.0.1 localhost", f"{controller_address(spec)} login"]
    lines += [f"{node_address(spec, place, index)} {name}" for index, name in enumerate(spec.node_names)]
    return "\n".join(lines) + "\n"


def render_gres_conf(spec: ClusterSpec, place: ClusterPlace) -> str:
    """Fake GPUs; the device files are links to ``/dev/null``, as SLURM ignores a plain file."""
    if not spec.gpus_per_node:
        return "AutoDetect=off\n"
    files = f"{place.directory}/dev/nvidia[0-{spec.gpus_per_node - 1}]"
    lines = [f"NodeName={name} Name=gpu Flags=nvidia_gpu_env File={files}" for name in spec.node_names]
    return "\n".join(["AutoDetect=off", *lines]) + "\n"


def render_slurmdbd_conf(spec: ClusterSpec, place: ClusterPlace) -> str:
    """slurmdbd over a MariaDB that asks for no password and listens on the loopback only."""
    options = {
        "AuthType": "auth/munge",
        "AuthInfo": f"socket={place.munge_socket}",
        "DbdHost": "localhost",
        "DbdAddr": controller_address(spec),
        "DbdPort": place.port + 1,
        "SlurmUser": getpass.getuser(),
        "StorageType": "accounting_storage/mysql",
        "StorageHost": "127.0.0.1",
        "StoragePort": place.port + 2,
        "StorageLoc": "slurm",
        "StorageUser": "root",
        "StoragePass": "none",
        "LogFile": place.log("slurmdbd"),
        "PidFile": place.directory / "run" / "slurmdbd.pid",
    }
    return "".join(f"{name}={value}\n" for name, value in options.items())


def render_slurm_conf(spec: ClusterSpec, place: ClusterPlace) -> str:
    """slurm.conf, the same for all daemons and clients."""
    user = getpass.getuser()
    options: dict[str, object] = {
        "ClusterName": "test",
        "SlurmctldHost": f"localhost({controller_address(spec)})",
        "SlurmctldPort": place.port,
        "SlurmUser": user,
        "SlurmdUser": user,
        "AuthType": "auth/munge",
        # A requeued job waits until its old credential has expired, and a launch slower than that fails.
        "AuthInfo": f"socket={place.munge_socket},cred_expire={6 + len(spec.node_names) // 4}",
        "CredType": "cred/munge",
        "StateSaveLocation": place.directory / "state",
        "SlurmdSpoolDir": place.directory / "spool" / "%n",
        "SlurmctldPidFile": place.directory / "run" / "slurmctld.pid",
        "SlurmdPidFile": place.directory / "run" / "slurmd-%n.pid",
        "SlurmctldLogFile": place.log("slurmctld"),
        "SlurmdLogFile": place.log("slurmd-%n"),
        "SlurmctldDebug": "verbose",
        "SlurmdDebug": "verbose",
        "MpiDefault": "none",
        "ProctrackType": "proctrack/linuxproc",
        "TaskPlugin": "task/none",
        "SwitchType": "switch/none",
        "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_Core_Memory",
        # Without it a job that names no memory takes all of it, and no second job fits on its nodes.
        "DefMemPerCPU": spec.memory_mb // spec.cores_per_node,
        "SlurmdParameters": "config_overrides",
        # One hop to every node: a forwarding node that is slow or dead delays nobody else.
        "TreeWidth": 65533,
        "ReturnToService": 1,
        "SlurmdTimeout": spec.slurmd_timeout_s,
        "MessageTimeout": spec.message_timeout_s,
        "KillWait": 5,
        "MinJobAge": 3600,
        # submitit would take the result of an older cluster's job with the same id for its own.
        "FirstJobId": int(time.time()) % 60_000_000 + 1,
        "PreemptType": "preempt/partition_prio",
        "PreemptMode": "REQUEUE",
        "SlurmctldParameters": "preempt_send_user_signal",
        "SchedulerParameters": "batch_sched_delay=0,sched_min_interval=0,sched_interval=1,bf_interval=2",
    }
    if spec.isolation is Isolation.NET6:
        options["CommunicationParameters"] = "EnableIPv6,DisableIPv4"
    if spec.gpus_per_node:
        options["GresTypes"] = "gpu"
    if spec.accounting:
        options |= {
            "AccountingStorageType": "accounting_storage/slurmdbd",
            "AccountingStorageHost": controller_address(spec),
            "AccountingStoragePort": place.port + 1,
            "AccountingStoragePass": place.munge_socket,
        }
        if spec.gpus_per_node:  # fatal without slurmdbd
            options["AccountingStorageTRES"] = "gres/gpu"
    options |= spec.options
    lines = [f"{name}={value}" for name, value in options.items()]
    lines += [_node_line(spec, place, index) for index in range(len(spec.node_names))]
    for index, partition in enumerate(spec.partitions):
        default = "YES" if index == 0 else "NO"
        line = f"PartitionName={partition.name} Nodes=ALL Default={default} PriorityTier={partition.priority_tier}"
        lines.append(f"{line} State=UP {partition.options}".rstrip())
    return "\n".join(lines) + "\n"


def _node_line(spec: ClusterSpec, place: ClusterPlace, index: int) -> str:
    name = spec.node_names[index]
    words = [
        f"NodeName={name} NodeHostname={name} NodeAddr={node_address(spec, place, index)}",
        f"Port={place.port + 10 + index}",
        f"Sockets=2 CoresPerSocket={spec.cores_per_node // 2} ThreadsPerCore=1 RealMemory={spec.memory_mb}",
    ]
    if spec.gpus_per_node:
        words.append(f"Gres=gpu:{spec.gpus_per_node}")
    return " ".join(words)


def write_files(spec: ClusterSpec, place: ClusterPlace) -> None:
    """Creates every directory and file that the daemons expect to find."""
    for name in ("etc", "log", "run", "state", "spool", "dev", "bin", "database", "nodes"):
        (place.directory / name).mkdir(mode=0o755)
    for name in spec.node_names:
        (place.directory / "spool" / name).mkdir(mode=0o755)
    for index in range(spec.gpus_per_node):
        (place.directory / "dev" / f"nvidia{index}").symlink_to("/dev/null")
    (place.directory / "etc" / "hosts").write_text(render_hosts(spec, place), encoding="utf-8")
    (place.directory / "etc" / "gres.conf").write_text(render_gres_conf(spec, place), encoding="utf-8")
    place.slurm_conf.write_text(render_slurm_conf(spec, place), encoding="utf-8")
    source = Path(__file__).with_name("stepd.py").read_text(encoding="utf-8")
    place.stepd.write_text(f"#!{sys.executable} -IS\n{source}", encoding="utf-8")
    place.stepd.chmod(0o755)
    if spec.programs:
        # Releases from 23.11 on look for cgroups unless they are told not to; 22.05 does not know the word.
        (place.directory / "etc" / "cgroup.conf").write_text("CgroupPlugin=disabled\n", encoding="utf-8")
    if spec.accounting:
        dbd = place.directory / "etc" / "slurmdbd.conf"
        dbd.touch(mode=0o600)  # slurmdbd refuses a configuration that others can read
        dbd.write_text(render_slurmdbd_conf(spec, place), encoding="utf-8")


def hold_ports(count: int) -> tuple[int, int, socket.socket]:
    """A block of free ports; the returned socket holds it against other clusters for as long as it is open."""
    if count > PORTS_PER_SLOT:
        raise ClusterError(f"a cluster has at most {PORTS_PER_SLOT - 10} nodes")
    for slot in range(SLOTS):
        port = FIRST_PORT + slot * PORTS_PER_SLOT
        lock = socket.socket()
        try:
            lock.bind(("127.0.0.1", port + 9))
            for number in range(port, port + count):
                if number != port + 9:
                    with socket.socket() as probe:
                        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                        probe.bind(("0.0.0.0", number))
        except OSError:
            lock.close()
            continue
        return slot, port, lock
    raise ClusterError(f"no {count} free ports in any of {SLOTS} blocks from {FIRST_PORT} on")


SLURMDBD = ("slurmdbd", "-D")
ADD_CLUSTER = ("sacctmgr", "--immediate", "add", "cluster", "test")
"""Succeeds once slurmdbd answers."""


def mariadbd_command(place: ClusterPlace) -> list[str]:
    """Starts the database."""
    return [
        "mariadbd",
        "--no-defaults",
        f"--datadir={place.directory / 'database'}",
        f"--socket={place.directory / 'run' / 'mariadb.sock'}",
        f"--pid-file={place.directory / 'run' / 'mariadb.pid'}",
        f"--user={getpass.getuser()}",
        "--bind-address=127.0.0.1",
        f"--port={place.port + 2}",
        "--skip-grant-tables",  # there are none, and no password to keep
        "--innodb-log-file-size=8M",
        "--innodb-buffer-pool-size=32M",
        "--innodb-flush-log-at-trx-commit=0",  # the data is thrown away at the end
    ]


def ping_command(place: ClusterPlace) -> list[str]:
    """Succeeds once the database listens."""
    return ["bash", "-c", f"exec 3<>/dev/tcp/127.0.0.1/{place.port + 2}"]
