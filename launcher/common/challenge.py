"""Proof that two processes share a key, without sending the key: an HMAC-SHA256 over a nonce (RFC 2104).

One side sends a fresh nonce, the other returns the :func:`proof` of a statement that holds the nonce. A nonce is used
once, so a recorded proof is worth nothing. Where both sides prove themselves, each statement also names its side:
otherwise a proof could be sent back to the one who made it.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets

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
