"""Starts the smallest real accounting: a MariaDB on an empty directory, and slurmdbd over it."""

from __future__ import annotations

import getpass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from launcher.testing.slurm_cluster.supervisor import Supervisor


def start(supervisor: Supervisor, deadline: float) -> None:
    """Returns when slurmdbd knows the cluster."""
    place = supervisor.place
    mariadbd = [
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
    database = supervisor.spawn("mariadbd", supervisor.in_login(*mariadbd))
    ping = ["bash", "-c", f"exec 3<>/dev/tcp/127.0.0.1/{place.port + 2}"]
    supervisor.wait(lambda: supervisor.answers(*ping), deadline, "MariaDB to listen", database)
    daemon = supervisor.spawn("slurmdbd", supervisor.in_login("slurmdbd", "-D"))
    add = ["sacctmgr", "--immediate", "add", "cluster", "test"]
    supervisor.wait(lambda: supervisor.answers(*add), deadline, "slurmdbd to answer", daemon)
