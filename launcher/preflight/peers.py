"""What lies between nodes: names, connections and clocks; every node tries a few others, and lets them try it."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import secrets
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from launcher.common.ports import hold_free_port, port_of
from launcher.control.preflight_report import PeerReport

SAMPLES = 5


def clock_offset(read_clock: Callable[[], float]) -> tuple[float, float]:
    """This clock minus the other one, and the largest error of that, in seconds.

    Args:
        read_clock: requests the time of the other clock.
    """
    best = (0.0, float("inf"))
    for _ in range(SAMPLES):
        before = time.time()
        other = read_clock()
        after = time.time()
        half = max(0.0, after - before) / 2
        if half < best[1]:
            best = (before + half - other, half)
    return best


def clock_skew(offset_s: float, error_s: float, limit_s: float) -> PeerReport | None:
    """The report of a clock that is off by more than the limit and the error of the measurement together."""
    if abs(offset_s) - error_s <= limit_s:
        return None
    way = "ahead of" if offset_s > 0 else "behind"
    text = f"clock {abs(offset_s):.1f} s {way} node 0's, `preflight.max_clock_skew_s` is {limit_s:g}"
    return PeerReport(name="clock", about=0, text=text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """What a node publishes about itself for the nodes that check it."""

    node_rank: int
    hostname: str
    address: str
    port: int
    """Where its probe answers."""

    stack: str
    """See :func:`launcher.preflight.context.network_stack`."""

    canary: str
    """Word in its canary file; empty if it could not write one."""


class Probe:
    """Sends this node's rank to every client that connects, from a thread, until it is closed."""

    def __init__(self, address: str, node_rank: int) -> None:
        self._sock = hold_free_port(address)
        self.port = port_of(self._sock)
        self._answer = json.dumps({"node_rank": node_rank}).encode() + b"\n"
        threading.Thread(target=self._serve, name="probe", daemon=True).start()

    def close(self) -> None:
        """Ends it."""
        # A thread that waits in accept() is woken by a shutdown, not by a close.
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._sock.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                connection.settimeout(1.0)
                connection.sendall(self._answer)


def connect(peer: Peer, *, timeout_s: float) -> PeerReport | None:
    """Connects to a peer's probe, and makes sure that it is that node which answers."""
    where = f"{peer.address}:{peer.port}"
    try:
        with socket.create_connection((peer.address, peer.port), timeout=timeout_s) as connection:
            answer = json.loads(connection.makefile("rb").readline() or b"{}")
    except (OSError, ValueError) as error:
        reason = f"no answer within {timeout_s:g} s" if isinstance(error, TimeoutError) else str(error)
        return PeerReport(name="connect", about=peer.node_rank, text=f"cannot be reached at {where}: {reason}")
    if answer.get("node_rank") != peer.node_rank:
        return PeerReport(name="connect", about=peer.node_rank, text=f"another program answers at its address {where}")
    return None


def resolve(peer: Peer, my_stack: str) -> PeerReport | None:
    """Resolves a peer's name: to something, and not to the loopback, where only a node itself would find itself."""
    try:
        found = socket.getaddrinfo(peer.hostname, None, type=socket.SOCK_STREAM)
    except OSError as error:
        return _unresolved(peer, f"does not resolve ({error.strerror or error})")
    addresses = sorted({str(info[4][0]) for info in found})
    loopback = [address for address in addresses if ipaddress.ip_address(address.partition("%")[0]).is_loopback]
    if loopback and peer.stack != my_stack:
        return _unresolved(peer, f"resolves to {', '.join(loopback)}, a loopback address")
    return None


def _unresolved(peer: Peer, what: str) -> PeerReport:
    return PeerReport(name="names", about=peer.node_rank, text=f"its name {what}")


CANARIES = "preflight"
POLL_S = 0.05


class Canary:
    """A node's own file. Its name holds a random token, so that no cache of the filesystem can hold it."""

    def __init__(self, attempt_dir: Path, node_rank: int) -> None:
        self.token = secrets.token_hex(8)
        self._directory = attempt_dir / CANARIES
        self._path = self._directory / _canary_name(node_rank, self.token)

    def write(self) -> None:
        """Writes it.

        Raises:
            OSError: the filesystem does not take it.
        """
        self._directory.mkdir(parents=True, exist_ok=True)
        self._path.write_text(self.token, encoding="utf-8")

    def remove(self) -> None:
        """Takes it away, and the directory with it once that is empty."""
        try:
            self._path.unlink(missing_ok=True)
            self._directory.rmdir()
        except OSError:
            return  # the others' are still there


def _canary_name(node_rank: int, token: str) -> str:
    """File name of a node's canary."""
    return f"{node_rank:05d}-{token}"


def read_canaries(attempt_dir: Path, wanted: dict[int, str], *, timeout_s: float) -> list[PeerReport]:
    """Reads the canaries of a few nodes; waits for files that a slow filesystem shows late.

    Args:
        wanted: the token of each node to read, by node rank.
    """
    directory = attempt_dir / CANARIES
    deadline = time.monotonic() + timeout_s
    missing = dict(wanted)
    while True:
        for rank, token in list(missing.items()):
            if _content(directory / _canary_name(rank, token)) == token:
                del missing[rank]
        if not missing or time.monotonic() > deadline:
            return [_unseen(rank, timeout_s) for rank in missing]
        time.sleep(POLL_S)


def list_canaries(attempt_dir: Path, wanted: dict[int, str], *, timeout_s: float) -> list[PeerReport]:
    """Looks for the canary of every node by listing their directory, which costs the same for any number of nodes."""
    directory = attempt_dir / CANARIES
    deadline = time.monotonic() + timeout_s
    while True:
        there = {path.name for path in directory.iterdir()}
        missing = [rank for rank, token in wanted.items() if _canary_name(rank, token) not in there]
        if not missing or time.monotonic() > deadline:
            return [_unseen(rank, timeout_s) for rank in missing]
        time.sleep(POLL_S)


def _content(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None


def _unseen(rank: int, timeout_s: float) -> PeerReport:
    text = f"what it writes into the run directory is not seen after {timeout_s:g} s: is `output_dir` shared?"
    return PeerReport(name="canary", about=rank, text=text)
