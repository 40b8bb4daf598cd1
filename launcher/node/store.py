"""The trainers' rendezvous store: ``python -m launcher.node.store``, one process on node 0.

It holds ``MASTER_PORT``: the port is bound before anybody learns it and never let go, so no other program can take it.
Workers are clients of it, as under torchrun (``TORCHELASTIC_USE_AGENT_STORE``). Each start of the trainers gets a store
of its own, because torch puts no prefix before its keys: ranks would find the addresses of those before them.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING

from launcher.common.env import LAUNCHER_ADDRESS
from launcher.common.errors import ControlError
from launcher.common.ports import serve_store
from launcher.control.client import ControlClient
from launcher.control.model import TRAINER_RESTART_COUNT, store_key
from launcher.stopping import survive_sigterm

if TYPE_CHECKING:
    from torch.distributed import TCPStore


POLL_S = 0.2
"""Pause between requests for the trainers' restart count."""

CLIENT_TIMEOUT_S = 300.0


def main() -> None:
    """Serves until it is ended by a signal."""
    address = os.environ[LAUNCHER_ADDRESS]
    control = ControlClient.from_environment()
    # The trainers may need it for their last checkpoint.
    survive_sigterm()
    # The one before is kept: a rank that is being ended may still use it.
    stores: dict[int, TCPStore] = {}
    while True:
        # The trainers go on without the control service for a while, and so must their store.
        with contextlib.suppress(ControlError):
            restart_count = int(control.get(TRAINER_RESTART_COUNT)[TRAINER_RESTART_COUNT])
            if restart_count not in stores:
                stores[restart_count], served_at = serve_store(address, CLIENT_TIMEOUT_S)
                control.put(store_key(restart_count), served_at)
                stores.pop(restart_count - 2, None)
        time.sleep(POLL_S)


if __name__ == "__main__":
    main()
