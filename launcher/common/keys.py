"""The keys of a run. All are derived from its one token, so a process that holds one key cannot make the others."""

from __future__ import annotations

import os
import secrets

from launcher.common.challenge import proof
from launcher.common.env import LAUNCHER_TOKEN
from launcher.common.errors import ControlError


def new_token() -> str:
    """A fresh run token: 256 random bits in hexadecimal."""
    return secrets.token_hex(32)


def token_from_environment() -> str:
    """The token of the run that this process belongs to.

    Raises:
        ControlError: the variable is not set.
    """
    token = os.environ.get(LAUNCHER_TOKEN, "")
    if not token:
        raise ControlError(
            f"`{LAUNCHER_TOKEN}` is not set. HINT: processes of a run get it from their agent; start them through"
            " `launcher`."
        )
    return token


def derive(token: str, purpose: str) -> str:
    """The key for one purpose: HMAC-SHA256 of the purpose under the token, in hexadecimal."""
    return proof(token, purpose)


def api_key(token: str) -> str:
    """Bearer key of the engines' OpenAI API."""
    return derive(token, "openai-api")


def bridge_key(token: str) -> str:
    """Bearer key of the engines' bridge routes, which the trainer calls."""
    return derive(token, "bridge")


def control_proof(token: str, nonce: str) -> str:
    """Answer to the control service's challenge."""
    return derive(token, f"control:{nonce}")
