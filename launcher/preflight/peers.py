"""What lies between nodes: names, connections and clocks; every node tries a few others, and lets them try it."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from launcher.common.ports import hold_free_port, port_of
from launcher.control.preflight_report import PeerReport

SAMPLES = 5


def clock_offset(ask: Callable[[], float]) -> tuple[float, float]:
    """This clock minus the other one, and the largest error of that, in seconds.

    Args:
        ask: the other clock, at the price of a round trip.
    """
    best = (0.0, float("inf"))
    for _ in range(SAMPLES):
        before = time.time()
        other = ask()
        after = time.time()
        half = max(0.0, after - before) / 2
        if half < best[1]:
            best = (before + half - other, half)
    return best


def clock_skew(offset_s: float, error_s: float, limit_s: float) -> PeerReport | None:
    """What to say of a clock that is off; the measurement's error is in its favour."""
    if abs(offset_s) - error_s <= limit_s:
        return None
    way = "ahead of" if offset_s > 0 else "behind"
    text = f"clock {abs(offset_s):.1f} s {way} node 0's, `preflight.max_clock_skew_s` is {limit_s:g}"
    return PeerReport(name="clock", about=0, text=text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """What a node says of itself to those that look at it."""

    node_rank: int
    hostname: str
    address: str
    port: int
    """Where its probe answers."""

    stack: str
    """See :func:`launcher.preflight.context.network_stack`."""

    canary: str
    """Word in its canary file; empty if it could not write one."""

    def to_json(self) -> dict[str, Any]:
        """For the control connection."""
        return asdict(self)


def peer_from_json(data: Mapping[str, Any]) -> Peer:
    """The inverse of :meth:`Peer.to_json`."""
    return Peer(**data)


class Probe:
    """Answers everybody who connects with this node's rank, from a thread, until it is closed."""

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
LOOK_AGAIN_S = 0.05


class Canary:
    """A node's own file. Its name holds a word that nobody can know in advance, so no cache can answer for it."""

    def __init__(self, attempt_dir: Path, node_rank: int) -> None:
        self.word = secrets.token_hex(8)
        self._directory = attempt_dir / CANARIES
        self._path = self._directory / _canary_name(node_rank, self.word)

    def write(self) -> None:
        """Writes it.

        Raises:
            OSError: the filesystem does not take it.
        """
        self._directory.mkdir(parents=True, exist_ok=True)
        self._path.write_text(self.word, encoding="utf-8")

    def remove(self) -> None:
        """Takes it away, and the directory with it once that is empty."""
        try:
            self._path.unlink(missing_ok=True)
            self._directory.rmdir()
        except OSError:
            return  # the others' are still there


def _canary_name(node_rank: int, word: str) -> str:
    """File name of a node's canary."""
    return f"{node_rank:05d}-{word}"


def read_canaries(attempt_dir: Path, wanted: dict[int, str], *, timeout_s: float) -> list[PeerReport]:
    """Reads the canaries of a few nodes; what a slow filesystem shows late is waited for.

    Args:
        wanted: the word of each node to read, by node rank.
    """
    directory = attempt_dir / CANARIES
    deadline = time.monotonic() + timeout_s
    missing = dict(wanted)
    while True:
        for rank, word in list(missing.items()):
            if _content(directory / _canary_name(rank, word)) == word:
                del missing[rank]
        if not missing or time.monotonic() > deadline:
            return [_unseen(rank, timeout_s) for rank in missing]
        time.sleep(LOOK_AGAIN_S)


def list_canaries(attempt_dir: Path, wanted: dict[int, str], *, timeout_s: float) -> list[PeerReport]:
    """Looks for the canary of every node by listing their directory, which costs the same for any number of nodes."""
    directory = attempt_dir / CANARIES
    deadline = time.monotonic() + timeout_s
    while True:
        there = {path.name for path in directory.iterdir()}
        missing = [rank for rank, word in wanted.items() if _canary_name(rank, word) not in there]
        if not missing or time.monotonic() > deadline:
            return [_unseen(rank, timeout_s) for rank in missing]
        time.sleep(LOOK_AGAIN_S)


def _content(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None


def _unseen(rank: int, timeout_s: float) -> PeerReport:
    text = f"what it writes into the run directory is not seen after {timeout_s:g} s: is `output_dir` shared?"
    return PeerReport(name="canary", about=rank, text=text)
