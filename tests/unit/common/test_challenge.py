"""The challenge by which two processes of a run recognise each other."""

from __future__ import annotations

import hashlib
import hmac

import pytest

from launcher.common.keys import is_proof, is_same, new_nonce, proof


def test_a_proof_holds_for_its_key_and_statement_only() -> None:
    nonce = new_nonce()
    found = proof("key", f"sender {nonce}")
    assert is_proof(found, "key", f"sender {nonce}")
    assert not is_proof(found, "another key", f"sender {nonce}")
    assert not is_proof(found, "key", f"receiver {nonce}")
    assert not is_proof(found, "key", f"sender {new_nonce()}")


def test_a_proof_is_the_hmac_of_the_standard() -> None:
    # RFC 4231, test case 2.
    assert proof("Jefe", "what do ya want for nothing?") == (
        "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
    )
    assert proof("k", "s") == hmac.new(b"k", b"s", hashlib.sha256).hexdigest()


def test_no_two_nonces_are_the_same() -> None:
    assert len({new_nonce() for _ in range(100)}) == 100


@pytest.mark.parametrize("candidate", ["", "é", "\ud800", "0" * 64])
def test_what_is_no_proof_is_refused(candidate: str) -> None:
    assert not is_proof(candidate, "key", "statement")
    assert is_same(candidate, candidate)
