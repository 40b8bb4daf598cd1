"""The keys of a run, all derived from its one token; and the proof that two processes share a key, by HMAC-SHA256."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets

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


NONCE_BYTES = 16


def new_nonce() -> str:
    """A fresh nonce, in hexadecimal."""
    return secrets.token_hex(NONCE_BYTES)


def proof(key: str, statement: str) -> str:
    """HMAC-SHA256 of ``statement`` under ``key``, in hexadecimal."""
    return hmac.new(key.encode(), statement.encode(), hashlib.sha256).hexdigest()


def is_proof(candidate: str, key: str, statement: str) -> bool:
    """Whether ``candidate`` is the proof of ``statement`` under ``key``; compared in constant time."""
    return is_same(candidate, proof(key, statement))


def is_same(left: str, right: str) -> bool:
    """Compares two secrets in constant time. Text that is not valid Unicode is equal to nothing."""
    return hmac.compare_digest(left.encode(errors="surrogatepass"), right.encode(errors="surrogatepass"))
