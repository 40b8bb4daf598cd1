"""One node's part of an engine: ``python -m launcher.inference.server --replica I --replica-rank R [vLLM arguments]``.

vLLM's own API server, with three things around it: the port is bound and published before vLLM is even imported, so
that no other process can take it; the bridge's routes and the keys are added as an ASGI middleware; the bridge's
receiver is added as a worker extension. vLLM's development endpoints stay closed.
"""

from __future__ import annotations

import argparse
import errno
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from launcher.common.env import (
    LAUNCHER_ADDRESS,
    LAUNCHER_ENGINE_MASTER,
    LAUNCHER_MODEL_PATH,
    LAUNCHER_PORT,
    LAUNCHER_PROCESS,
)
from launcher.common.errors import EngineRefusal, LauncherError
from launcher.common.ports import hold_free_port, hold_port, port_of, url_host
from launcher.common.startup import configure_logging
from launcher.control.client import ControlClient
from launcher.control.emit import emit
from launcher.control.model import url_key
from launcher.events.schema import PhaseChanged

logger = logging.getLogger(__name__)

MIDDLEWARE = "launcher.bridge.vllm.middleware.BridgeMiddleware"
WORKER_EXTENSION = "launcher.bridge.vllm.worker.BridgeWorker"


KEEP_ALIVE_S = 600
"""How long a client's idle connection is kept. vLLM's 5 s is also the time after which httpx drops one, and a request
that meets the engine's closing of its connection fails; so here the clients are the first to close."""


def main(argv: Sequence[str] | None = None) -> int:
    """Serves until a signal ends it; an expected failure is one message."""
    parser = argparse.ArgumentParser(prog="launcher.inference.server", description=__doc__)
    parser.add_argument("--replica", type=int, required=True)
    parser.add_argument("--replica-rank", type=int, required=True)
    parser.add_argument("--strict-port", action="store_true", help="fail if the planned port is taken")
    arguments, vllm_arguments = parser.parse_known_args(argv)
    configure_logging(f"inference {arguments.replica}.{arguments.replica_rank}")
    # vLLM leaves the file by which its workers meet in a directory that all users of the node share.
    os.umask(0o077)
    try:
        vllm_arguments = [*_model_arguments(), *vllm_arguments, *_master_arguments()]
        if arguments.replica_rank > 0:
            _serve_headless(vllm_arguments)
        else:
            _serve(arguments.replica, vllm_arguments, strict=arguments.strict_port)
    except LauncherError as error:
        print(f"launcher: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _from_agent(variable: str) -> str:
    value = os.environ.get(variable)
    if not value:
        raise LauncherError(
            f"`{variable}` is not set: a node's agent starts this program. HINT: an engine that is started by hand is"
            " `vllm serve` with the arguments in `launcher.bridge.vllm.plugin`."
        )
    return value


def _model_arguments() -> list[str]:
    path = _from_agent(LAUNCHER_MODEL_PATH)
    return ["--model", path, "--worker-extension-cls", WORKER_EXTENSION]


def _master_arguments() -> list[str]:
    """Rendezvous of a replica that spans nodes; its head's agent chose it."""
    master = os.environ.get(LAUNCHER_ENGINE_MASTER)
    if not master:
        return []
    host, _, port = master.rpartition(":")
    return ["--master-addr", host, "--master-port", port]


def _serve(replica: int, vllm_arguments: list[str], *, strict: bool) -> None:
    name = _from_agent(LAUNCHER_PROCESS)
    address = _from_agent(LAUNCHER_ADDRESS)
    sock = _hold(address, int(_from_agent(LAUNCHER_PORT)), strict=strict)
    url = f"http://{url_host(address)}:{port_of(sock)}"
    control = ControlClient.from_environment()
    control.put(url_key(replica), url)
    control.close()
    logger.info("replica %d will serve on %s", replica, url)
    emit(PhaseChanged(phase="import vllm", who=name, state="begin"))

    os.environ.setdefault("VLLM_HTTP_TIMEOUT_KEEP_ALIVE", str(KEEP_ALIVE_S))
    from launcher.bridge.vllm import compat

    compat.import_server()

    emit(PhaseChanged(phase="import vllm", who=name, state="end"))
    emit(PhaseChanged(phase="load engine", who=name, state="begin"))
    arguments = _parse(["--host", address, "--port", str(port_of(sock)), "--middleware", MIDDLEWARE, *vllm_arguments])
    # Until uvicorn installs its own handlers: SIGTERM while the engine loads ends it the way Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        compat.serve(url, sock, arguments)
    except KeyboardInterrupt:
        logger.info("ended while starting")


def _serve_headless(vllm_arguments: list[str]) -> None:
    from launcher.bridge.vllm import compat

    compat.serve_headless(_parse(vllm_arguments))


def _parse(vllm_arguments: list[str]) -> argparse.Namespace:
    """vLLM's own parser on vLLM's own arguments."""
    from launcher.bridge.vllm import compat
    from launcher.bridge.vllm.options import missing_packages

    def refuse(message: str) -> NoReturn:
        raise EngineRefusal(f"vLLM refuses its arguments: {message}. HINT: see `inference.args`.")

    if missing := missing_packages(Path(_from_agent(LAUNCHER_MODEL_PATH))):
        raise EngineRefusal(missing)
    if compat.is_cpu():
        from launcher.bridge.vllm.plain_linear import NAME

        if any(word.partition("=")[0] in ("-q", "--quantization") for word in vllm_arguments):
            refuse(f"on a CPU an engine can only be updated with `--quantization {NAME}`, which is set already")
        vllm_arguments = [*vllm_arguments, "--quantization", NAME]
    return compat.parse_arguments(vllm_arguments, refuse)


def _hold(address: str, port: int, *, strict: bool) -> socket.socket:
    """The planned port if it is free; else another one, unless ports are strict.

    Raises:
        LauncherError: the planned port is taken, and ports are strict.
    """
    try:
        return hold_port(address, port)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise LauncherError(f"Cannot listen on {address}:{port}: {error}") from error
    if strict:
        raise EngineRefusal(
            f"Port {port} on {address} is taken, and `inference.strict_ports` is true."
            f" HINT: set `inference.base_port` to another value, or `inference.strict_ports=false`."
        )
    sock = hold_free_port(address)
    logger.warning("planned port %d is taken by another program; serving on %d", port, port_of(sock))
    return sock


if __name__ == "__main__":
    sys.exit(main())
