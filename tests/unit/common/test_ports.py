"""Ports: held from the moment they are chosen, where no outgoing connection can be in the way."""

from __future__ import annotations

import errno
import socket
import subprocess
import sys
from contextlib import ExitStack

import pytest

from launcher.common.ports import ephemeral_range, hold_free_port, hold_port, port_of

pytestmark = pytest.mark.slow

PROGRAM = """
import sys
from launcher.common.ports import hold_free_port, port_of
held = [hold_free_port("127.0.0.1") for _ in range(300)]
print(*[port_of(sock) for sock in held], flush=True)
sys.stdin.read()
"""


def test_a_free_port_lies_outside_the_ephemeral_range() -> None:
    low, high = ephemeral_range()
    with ExitStack() as stack:
        ports = [port_of(stack.enter_context(hold_free_port("127.0.0.1"))) for _ in range(100)]
    assert len(set(ports)) == 100
    assert not [port for port in ports if low <= port <= high]


def test_two_processes_never_get_one_port() -> None:
    programs = [
        subprocess.Popen([sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    ports: list[str] = []
    for program in programs:
        assert program.stdout is not None
        ports += program.stdout.readline().split()
    for program in programs:
        program.communicate("")
    assert len(ports) == 900 == len(set(ports))


@pytest.mark.parametrize("options", [[], [socket.SO_REUSEADDR], [socket.SO_REUSEADDR, socket.SO_REUSEPORT]])
def test_a_held_port_can_be_had_by_nobody_else(options: list[int]) -> None:
    with hold_free_port("127.0.0.1") as held, socket.socket() as other:
        for option in options:
            other.setsockopt(socket.SOL_SOCKET, option, 1)
        with pytest.raises(OSError) as raised:
            other.bind(("127.0.0.1", port_of(held)))
            other.listen()
        assert raised.value.errno == errno.EADDRINUSE


def test_a_taken_port_is_refused_even_if_taken_on_all_addresses() -> None:
    with hold_free_port("0.0.0.0") as held, pytest.raises(OSError) as raised:
        hold_port("127.0.0.1", port_of(held))
    assert raised.value.errno == errno.EADDRINUSE


def test_a_port_is_free_again_right_after_its_connections_ended() -> None:
    sock = hold_free_port("127.0.0.1")
    port = port_of(sock)
    with socket.create_connection(("127.0.0.1", port)):
        served, _ = sock.accept()
        served.close()  # the side that closes first keeps the port in TIME_WAIT
    sock.close()
    with hold_port("127.0.0.1", port) as again:
        assert port_of(again) == port


def test_an_address_of_another_machine_is_an_error_that_names_it() -> None:
    from launcher.common.errors import LauncherError

    with pytest.raises(LauncherError, match=r"Cannot listen on 192\.0\.2\.1"):
        hold_free_port("192.0.2.1")
