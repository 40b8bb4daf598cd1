"""Buffers of a wire: used again, and never more than were in use at a time, whatever the sizes."""

from __future__ import annotations

import random

import torch

from launcher.bridge.transport.base import Buffers

AT_A_TIME = 3


def test_there_are_never_more_buffers_than_were_in_use_at_a_time() -> None:
    buffers, rng = Buffers(torch.device("cpu")), random.Random(3)
    for _ in range(300):
        taken = [buffers.take(rng.randrange(1, 5000)) for _ in range(rng.randint(1, AT_A_TIME))]
        assert len(buffers._free) + len(taken) <= AT_A_TIME
        for buffer in taken:
            buffers.give(buffer)
    assert len(buffers._free) <= AT_A_TIME


def test_a_buffer_that_is_large_enough_is_used_again() -> None:
    buffers = Buffers(torch.device("cpu"))
    first = buffers.take(100)
    address = first.data_ptr()
    buffers.give(first)
    assert buffers.take(60).data_ptr() == address


def test_what_is_given_back_after_the_end_is_not_kept() -> None:
    buffers = Buffers(torch.device("cpu"))
    taken = buffers.take(10)
    buffers.clear()
    buffers.give(taken)
    assert buffers._free == []
