"""Keys of a run, all derived from its one token, so that handing out one does not hand out the others."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets

from launcher.common.errors import ControlError

TOKEN_VARIABLE = "LAUNCHER_TOKEN"


def new_token() -> str:
    """A fresh run token: 256 random bits in hexadecimal."""
    return secrets.token_hex(32)


def token_from_environment() -> str:
    """The run's token.

    Raises:
        ControlError: the variable is not set.
    """
    token = os.environ.get(TOKEN_VARIABLE, "")
    if not token:
        raise ControlError(
            f"`{TOKEN_VARIABLE}` is not set. HINT: processes of a run get it from their agent; start them through"
            " `launcher`."
        )
    return token


def derive(token: str, purpose: str) -> str:
    """The key for one purpose: HMAC-SHA256 of the purpose under the token (RFC 2104), in hexadecimal."""
    return hmac.new(token.encode(), purpose.encode(), hashlib.sha256).hexdigest()


def api_key(token: str) -> str:
    """Key that clients of the engines' OpenAI API present."""
    return derive(token, "openai-api")


def bridge_key(token: str) -> str:
    """Key that the trainer presents to the engines' bridge routes."""
    return derive(token, "bridge")


def answer(token: str, nonce: str) -> str:
    """Proof of the token for the control service's challenge; the token itself never crosses the network."""
    return derive(token, f"control:{nonce}")


def same(left: str, right: str) -> bool:
    """Compares two keys in constant time."""
    return hmac.compare_digest(left.encode(), right.encode())
