"""Ports that no other process can take: chosen outside the kernel's ephemeral range, bound, listening and kept."""

from __future__ import annotations

import errno
import random
import socket
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.common.errors import LauncherError

if TYPE_CHECKING:
    from torch.distributed import TCPStore

LOWEST_PORT = 10_000
HIGHEST_PORT = 65_535
ATTEMPTS = 200


def ephemeral_range() -> tuple[int, int]:
    """The kernel's range for outgoing connections (``ip_local_port_range``), both ends included."""
    try:
        low, high = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="utf-8").split()
    except OSError:
        return 32_768, 60_999
    return int(low), int(high)


def hold_port(address: str, port: int) -> socket.socket:
    """Listens on exactly this port.

    Raises:
        OSError: ``EADDRINUSE`` if somebody else holds it.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        # Without SO_REUSEPORT, which would let a second server of the same user share the port silently. Listening at
        # once is what holds it: two bound sockets with SO_REUSEADDR coexist, a listening one excludes all others.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, port))
        sock.listen(1024)
    except OSError:
        sock.close()
        raise
    return sock


def hold_free_port(address: str) -> socket.socket:
    """Listens on a free port outside the ephemeral range, where no outgoing connection can ever be in the way.

    Where the ephemeral range leaves no room, the kernel chooses: the port is held either way.

    Raises:
        LauncherError: no port could be bound on this address.
    """
    low, high = ephemeral_range()
    outside = [*range(LOWEST_PORT, min(low, HIGHEST_PORT + 1)), *range(max(high + 1, LOWEST_PORT), HIGHEST_PORT + 1)]
    candidates = random.SystemRandom().sample(outside, min(ATTEMPTS, len(outside)))
    for port in [*candidates, 0]:
        try:
            return hold_port(address, port)
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise LauncherError(f"Cannot listen on {address}: {error}") from error
    raise LauncherError(f"No free port on {address}: {len(candidates)} were tried.")


def serve_store(address: str, timeout_s: float) -> tuple[TCPStore, str]:
    """torch's store on a free port that is held from the beginning, and its ``host:port``. It serves as long as it is
    referenced.

    Args:
        timeout_s: longest wait of its clients for a key, unless they set their own.
    """
    from torch.distributed import TCPStore

    sock = hold_free_port(address)
    port = port_of(sock)
    timeout = timedelta(seconds=timeout_s)
    store = TCPStore(
        address, port, is_master=True, timeout=timeout, wait_for_workers=False, master_listen_fd=sock.detach()
    )
    return store, f"{address}:{port}"


def port_of(sock: socket.socket) -> int:
    """The port that a socket is bound to."""
    return int(sock.getsockname()[1])


def url_host(address: str) -> str:
    """An address as it stands in a URL: one of IPv6 in brackets."""
    return f"[{address}]" if ":" in address else address
