"""The end-to-end check takes every bit pattern for what it is."""

from __future__ import annotations

import pytest
import torch

from launcher.bridge.codec.local import LocalTensor
from launcher.bridge.codec.messages import digest_received, digest_sent
from launcher.bridge.codec.pack import pack, unpack
from launcher.bridge.plan import Engine, Location, Receiver, TensorSpec, place, reshard
from launcher.bridge.plan.sharding import replicated as everywhere
from launcher.testing.bench.engine_layout import replicated


@pytest.mark.parametrize("shape", [(256, 256), (65536,), (16, 64, 64)])
def test_every_pattern_of_bfloat16_passes_into_a_float32_parameter(shape: tuple[int, ...]) -> None:
    """Also those that are not a number, of which there are 254: a model that diverged is not a broken wire."""
    spec = TensorSpec(name="gate", shape=shape, dtype="bfloat16")
    engine = Engine(parameters=((replicated("gate", spec, dtype="float32"),),), locations=(Location(node=0, gpu=1),))
    plan = reshard(place([spec], [(".*", everywhere(1))]), [engine], [Location(node=0, gpu=0)], round_bytes=1 << 20)
    (message,) = plan.incoming(Receiver(engine=0, rank=0))
    patterns = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int16).view(torch.bfloat16).view(shape)
    sent = {"gate": LocalTensor.whole(patterns)}
    came = {"gate": torch.zeros(shape)}
    buffer = torch.zeros(message.nbytes, dtype=torch.uint8)
    pack(message, sent, buffer)
    unpack(message, buffer, came)

    assert int(digest_sent(plan, message, sent)) == int(digest_received(plan, message, came))

    # A pattern that did not come is still seen, also one that is not a number either.
    wrong = came["gate"].view(-1).view(torch.int32)
    place_of_a_nan = int((came["gate"].view(-1).isnan()).nonzero()[5])
    wrong[place_of_a_nan] ^= 1 << 16
    assert came["gate"].view(-1)[place_of_a_nan].isnan()
    assert int(digest_sent(plan, message, sent)) != int(digest_received(plan, message, came))
