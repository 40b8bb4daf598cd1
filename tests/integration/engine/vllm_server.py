"""A vLLM server with the bridge's middleware and worker extension, as anybody may start it, for a test."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from launcher.common.ports import hold_free_port, port_of
from launcher.inference.server import MIDDLEWARE, WORKER_EXTENSION

ROOT = Path(__file__).parents[3]
PATIENCE_S = 240.0
ON_CPU = ("--enforce-eager", "--dtype", "float32", "--quantization", "launcher-plain")


@contextmanager
def serving(
    model: Path,
    folder: Path,
    arguments: Sequence[str] = (),
    device: Sequence[str] = ON_CPU,
    environ: Mapping[str, str] | None = None,
) -> Iterator[tuple[str, str]]:
    """URL and token of a server.

    Args:
        model: directory of a small model.
        folder: for its log.
        arguments: further ones of vLLM's.
        device: those that depend on what it computes on.
        environ: what its environment has besides this process's.
    """
    token = secrets.token_hex(32)
    with hold_free_port("127.0.0.1") as sock:
        port = port_of(sock)
    command = [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), *device),
        *("--host", "127.0.0.1", "--port", str(port), "--max-model-len", "128"),
        *("--middleware", MIDDLEWARE, "--worker-extension-cls", WORKER_EXTENSION),
        *arguments,
    ]
    environment = {
        **os.environ,
        "LAUNCHER_TOKEN": token,
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "600",
        "HF_HUB_OFFLINE": "1",
        **(environ or {}),
    }
    log = folder / "engine.log"
    with log.open("w") as output:
        server = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_healthy(url, server, log)
        yield url, token
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(60)
        finally:
            if server.poll() is None:
                os.killpg(server.pid, signal.SIGKILL)


def _wait_healthy(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            urllib.request.urlopen(f"{url}/health", timeout=5).close()
            return
        except (OSError, urllib.error.URLError):
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.3)
