"""The trainers' rendezvous store: ``python -m launcher.agent.store``, one process on node 0.

It holds ``MASTER_PORT`` for the whole run: the port is bound before anybody learns it and never let go, so no other
program can take it in between. Workers are clients of it, as under torchrun (``TORCHELASTIC_USE_AGENT_STORE``).
"""

from __future__ import annotations

import os
import signal
from datetime import timedelta

from launcher.control.client import ControlClient
from launcher.ports import hold_free_port, port_of
from launcher.stopping import survive_sigterm


def main() -> None:
    """Serves until it is told to end."""
    from torch.distributed import TCPStore

    address = os.environ["LAUNCHER_ADDRESS"]
    sock = hold_free_port(address)
    port = port_of(sock)
    store = TCPStore(  # noqa: F841  (the store serves as long as it is referenced)
        address,
        port,
        is_master=True,
        wait_for_workers=False,
        timeout=timedelta(seconds=300),
        master_listen_fd=sock.fileno(),
    )
    ControlClient.from_environment().put("trainer/store", f"{address}:{port}")
    # The trainers may need it for their last checkpoint.
    survive_sigterm()
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
