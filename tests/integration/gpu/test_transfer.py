"""A sender and a receiver over NCCL: weights arrive whole, and a wrong bit is seen.

Every test of a pair runs over gloo on a CPU, too, where it costs little.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from launcher.bridge.codec.checksum import digest
from launcher.bridge.plan import Box
from tests.integration.bridge.case import Case
from tests.integration.bridge.end import content
from tests.integration.bridge.ends import Answer, Pool

MASK = (1 << 64) - 1
SHORT_S = 4.0
SLACK_S = 10.0
JOIN_S = 40.0
PART = ["gate", "embed", "turned", "master"]
SMALL = Case(trainers=1, workers=1)


@pytest.fixture(scope="module", params=["gloo", pytest.param("nccl", marks=pytest.mark.gpu)])
def processes(request: pytest.FixtureRequest) -> Iterator[Pool]:
    """Both ends on a CPU with gloo; each on a GPU of its own with NCCL, which refuses to share one."""
    if request.param == "nccl" and torch.cuda.device_count() < 2:
        pytest.skip(f"NCCL between two processes needs 2 GPUs, here are {torch.cuda.device_count()}")
    found = Pool(transport=request.param, devices=("cuda:0", "cuda:1") if request.param == "nccl" else ("cpu",))
    yield found
    found.end()


@pytest.fixture
def pair(processes: Pool) -> Iterator[Pool]:
    """The same processes, but for those that a test has used up."""
    yield processes
    processes.settle()


def contents_of(case: Case, whole: dict[str, torch.Tensor]) -> list[Answer]:
    """What the worker must hold."""
    return [{name: content(tensor) for name, tensor in case.expected(whole, 0).items()}]


@pytest.mark.timeout(180)
def test_every_version_arrives_bit_by_bit(pair: Pool) -> None:
    replica = pair.join(SMALL, timeout_s=JOIN_S)
    for version in (1, 2):
        (sent,), (received,) = replica.publish(version)
        assert sent["digests"][0] & MASK == received["digest"]
        assert replica.contents() == contents_of(SMALL, SMALL.state(version))
    (sent,), (received,) = replica.publish(3, PART)
    assert sent["digests"][0] & MASK == received["digest"]
    new = SMALL.state(3)
    assert replica.contents() == contents_of(SMALL, {**SMALL.state(2), **{name: new[name] for name in PART}})
    replica.close()


@pytest.mark.timeout(180)
def test_a_wrong_bit_is_seen(pair: Pool) -> None:
    replica = pair.join(SMALL, timeout_s=JOIN_S)
    replica.prepare(1)
    flip = {"name": "norm", "byte": 5, "bit": 3, "times": 0, "stays": False}
    (sent,), (received,) = replica.send(1, flip=flip), replica.statuses()
    assert received["state"] == "received"
    assert sent["digests"][0] & MASK != received["digest"]
    replica.close()


@pytest.mark.timeout(180)
def test_a_peer_that_never_connects_is_reported_in_time(pair: Pool) -> None:
    (sender,) = pair.take(1)
    words = {"case": SMALL.to_json(), "group": "alone", "store": f"127.0.0.1:{pair.store.port}"}
    sender.tell(
        "join", role="sender", rank=0, device=pair.devices[0], transport=pair.transport, timeout_s=SHORT_S, **words
    )
    assert sender.hear().get("error", "").startswith("RendezvousTimeout")
    assert sender.ask("compute", device=pair.devices[0]) == {"total": 1000.0}
    sender.end()


@pytest.mark.gpu
@pytest.mark.timeout(120)
@pytest.mark.skipif(not torch.cuda.is_available(), reason="the kernel needs a GPU")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.uint8, torch.float8_e4m3fn])
@pytest.mark.parametrize("shape", [(1,), (7,), (5001,), (33, 1025), (257, 4098), (3, 5, 77)])
def test_the_digest_on_a_gpu_is_that_on_a_cpu(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    noise = torch.randint(0, 256, (torch.Size(shape).numel() * dtype.itemsize,), dtype=torch.uint8)
    tensor = noise.view(dtype).view(shape)
    on_gpu = tensor.cuda()
    assert digest(on_gpu) == digest(tensor)
    # A box out of the middle, whose rows begin anywhere in a word.
    inner = tuple((size // 3, size - size // 4) for size in shape)
    box = Box(tuple(start for start, _stop in inner), tuple(stop for _start, stop in inner))
    assert digest(on_gpu[box.slices()], box=box, shape=shape) == digest(tensor[box.slices()], box=box, shape=shape)
