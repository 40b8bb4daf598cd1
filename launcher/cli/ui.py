"""``launcher ui RUN``: a page about a run, or about all runs of a directory."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Sequence
from pathlib import Path

from launcher.cli.parser import CommandParser
from launcher.common.errors import LauncherError
from launcher.observe.find import LAST, add_run_argument, find_run, is_run, run_dirs
from launcher.web.sweeps import is_sweep

PORT = 8787
TRIED_PORTS = 20


def main(arguments: Sequence[str]) -> int:
    """Serves until it is interrupted."""
    parser = CommandParser(
        "ui",
        "Serves a page about a run, or about all runs of a directory, such as a sweep: layout, rewards, versions,"
        " start-up, events, logs, live. It reads only the run directory and needs no internet. On this machine's"
        " loopback anybody who is logged in here can open it, unless --token; on any other address a token is needed,"
        " which is in the address that is printed.",
        examples=[
            "launcher ui last",
            "launcher ui runs/sweeps/lr --port 9999",
            "ssh -L 8787:localhost:8787 login-node launcher ui /scratch/me/runs/tiny-20260101-000000-ab12",
        ],
        exit_codes={1: "the page cannot be served", 130: "interrupted"},
    )
    add_run_argument(parser, default=LAST)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, help=f"(default: {PORT}, or the next free one)")
    parser.add_argument("--token", action="store_true", help="require a token on loopback, too")
    parser.add_json("the address")
    options = parser.parse_args(arguments)
    path = Path(options.run)
    is_several = path.is_dir() and not is_run(path) and (is_sweep(path) or bool(run_dirs(path)))
    directory = path.absolute() if is_several else find_run(options.run, options.output_dir)
    try:
        import uvicorn

        from launcher.web.access import is_loopback, new_token
        from launcher.web.server import make_app
    except ModuleNotFoundError as error:
        raise LauncherError(f"The page needs `{error.name}`. HINT: pip install 'launcher[ui]'.") from error
    is_local = is_loopback(options.host)
    token = new_token() if options.token or not is_local else None
    sock = _listen(options.host, options.port)
    shown_host = "localhost" if options.host in ("127.0.0.1", "localhost") else options.host
    if options.host in ("0.0.0.0", "::"):
        shown_host = socket.getfqdn()
    query = f"?token={token}" if token is not None else ""
    url = f"http://{shown_host}:{sock.getsockname()[1]}/{query}"
    as_json = json.dumps({"directory": str(directory), "url": url})
    print(as_json if options.json else f"{directory.name}: {url}   (Ctrl-C ends it)", flush=True)
    servers: list[uvicorn.Server] = []
    app = make_app(
        directory, token=token, is_local=is_local, is_ending=lambda: any(server.should_exit for server in servers)
    )
    config = uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off", timeout_graceful_shutdown=5)
    servers.append(uvicorn.Server(config))
    with contextlib.suppress(KeyboardInterrupt):
        servers[0].run(sockets=[sock])
    return 0


def _listen(host: str, port: int | None) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    ports = [port] if port is not None else [*range(PORT, PORT + TRIED_PORTS), 0]
    for candidate in ports:
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, candidate))
            # From here on: who reads the address may use it at once.
            sock.listen(128)
        except OSError as error:
            sock.close()
            reason = error.strerror
        else:
            return sock
    raise LauncherError(f"`--port` ({ports[0]}) on {host} cannot be listened on: {reason}.")
