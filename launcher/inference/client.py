"""What a trainer needs to know of the engines: where they are and which key they take."""

from __future__ import annotations

import os

from launcher.control.client import ControlClient
from launcher.errors import LauncherError

URLS_VARIABLE = "LAUNCHER_INFERENCE_URLS"
API_KEY_VARIABLE = "LAUNCHER_INFERENCE_API_KEY"


def inference_urls() -> list[str]:
    """Base URLs of the engines, by replica: ``http://address:port``, without ``/v1``.

    Raises:
        LauncherError: this process belongs to no run.
    """
    return [url for url in _required(URLS_VARIABLE).split(",") if url]


def api_key() -> str:
    """Key for ``Authorization: Bearer`` of the engines' OpenAI API.

    Raises:
        LauncherError: this process belongs to no run.
    """
    return _required(API_KEY_VARIABLE)


def wait_ready(timeout_s: float = 600.0) -> list[str]:
    """Waits until every engine is healthy; their URLs.

    Raises:
        ControlError: one is not, after ``timeout_s``.
    """
    urls = inference_urls()
    client = ControlClient.from_environment()
    try:
        keys = [f"replica/{index}/ready" for index in range(len(urls))]
        client.wait_for(keys, timeout_s=timeout_s, what=f"{len(urls)} engines to be ready")
    finally:
        client.close()
    return urls


def _required(name: str) -> str:
    value = os.environ.get(name)
    if not value:
        raise LauncherError(f"`{name}` is not set: this process was not started as a trainer of a run.")
    return value
