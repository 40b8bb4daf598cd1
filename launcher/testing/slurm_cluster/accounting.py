"""The smallest real accounting: the commands of a MariaDB on an empty directory, and of slurmdbd over it."""

from __future__ import annotations

import getpass

from launcher.testing.slurm_cluster.conf import ClusterPlace

SLURMDBD = ("slurmdbd", "-D")
ADD_CLUSTER = ("sacctmgr", "--immediate", "add", "cluster", "test")
"""Succeeds once slurmdbd answers."""


def mariadbd(place: ClusterPlace) -> list[str]:
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


def ping(place: ClusterPlace) -> list[str]:
    """Succeeds once the database listens."""
    return ["bash", "-c", f"exec 3<>/dev/tcp/127.0.0.1/{place.port + 2}"]
