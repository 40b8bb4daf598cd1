"""A sender and a receiver on GPUs: weights arrive whole, a wrong bit is seen, and an end that is lost harms nobody.

Every test of a pair runs over gloo on a CPU, too, where it costs little.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from launcher.bridge.codec.checksum import digest
from launcher.bridge.plan import Box
from tests.integration.bridge.peer_process import Answer, Pool
from tests.integration.bridge.transfer_case import TransferCase
from tests.integration.bridge.transfer_process import content

MASK = (1 << 64) - 1
SHORT_S = 4.0
SLACK_S = 10.0
LOST_S = 12.0
"""For a version whose sender is lost; NCCL needs some seconds to connect."""

JOIN_S = 40.0
PART = ["gate", "embed", "turned", "master"]
SMALL = TransferCase(trainers=1, workers=1)


DEVICES = {"gloo": ("cpu",), "nccl": ("cuda:0", "cuda:1"), "peer": ("cuda:0", "cuda:1"), "ipc": ("cuda:0",)}
ON_GPUS = [pytest.param(name, marks=pytest.mark.gpu) for name in ("nccl", "peer", "ipc")]


@pytest.fixture(scope="module", params=["gloo", *ON_GPUS])
def processes(request: pytest.FixtureRequest) -> Iterator[Pool]:
    """Both ends on a CPU with gloo, on one GPU with ipc, else each on a GPU of its own."""
    devices = DEVICES[request.param]
    gpus = sum(device.startswith("cuda") for device in devices)
    if torch.cuda.device_count() < gpus:
        pytest.skip(f"{request.param} between two processes needs {gpus} GPUs, here are {torch.cuda.device_count()}")
    found = Pool(transport=request.param, devices=devices)
    yield found
    found.end()


@pytest.fixture
def pair(processes: Pool) -> Iterator[Pool]:
    """The same processes, but for those that a test has used up."""
    yield processes
    processes.settle()


def contents_of(case: TransferCase, whole: dict[str, torch.Tensor]) -> list[Answer]:
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


def large(trainers: int = 1) -> TransferCase:
    """Tensors of 1 MiB, several rounds of them; every version's lie in new memory at the sender."""
    return TransferCase(trainers=trainers, workers=1, model="large", round_bytes=8 << 20)


@pytest.mark.timeout(180)
def test_tensors_that_are_allocated_anew_for_every_version_arrive(pair: Pool) -> None:
    case = large(trainers=2)
    replica = pair.join(case, timeout_s=JOIN_S)
    for version in range(1, 6):
        for sender in replica.senders:
            sender.call("trim", group=replica.group)
        sent, (received,) = replica.publish(version)
        assert sum(end["digests"][0] for end in sent) & MASK == received["digest"]
        assert replica.contents() == contents_of(case, case.state(version))
    replica.close()


@pytest.mark.timeout(180)
def test_a_sender_killed_while_it_is_read_leaves_the_version_before(pair: Pool) -> None:
    case = large()
    replica = pair.join(case, timeout_s=LOST_S)
    replica.publish(1)
    replica.prepare(2)
    (sender,), (worker,) = replica.senders, replica.workers
    sender.send_command("send", group=replica.group, version=2, timeout_s=30.0, hold="large.30")
    assert sender.next_answer() == {"held": "large.30"}
    sender.end()
    (status,) = replica.statuses(LOST_S + SLACK_S)
    assert status["state"] == "failed"
    assert "has not been received" in replica.commit(2)[0]["error"]
    assert replica.contents() == contents_of(case, case.state(1))
    assert worker.call("close", group=replica.group)["seconds"] < SLACK_S
    again = pair.join(case, timeout_s=JOIN_S)
    again.publish(3)
    assert again.contents() == contents_of(case, case.state(3))
    # The lost wire's staging and mappings are gone: a version more holds no more than the first one did.
    held = again.workers[0].call("memory", group=again.group)["gpu_bytes"]
    again.publish(4)
    assert again.workers[0].call("memory", group=again.group)["gpu_bytes"] <= held
    again.close()


@pytest.mark.timeout(180)
def test_a_receiver_killed_with_open_mappings_costs_the_sender_nothing(pair: Pool) -> None:
    case = large()
    replica = pair.join(case, timeout_s=JOIN_S)
    (sender,), (worker,) = replica.senders, replica.workers
    replica.publish(1)
    replica.prepare(2)
    replica.start_send(2, timeout_s=SHORT_S)
    worker.end()
    sender.next_answer()  # It may have been read before.
    (answer,) = replica.send(3, timeout_s=SHORT_S)
    assert answer["error"].startswith("TransferError"), answer
    assert answer["seconds"] < SHORT_S + SLACK_S
    assert sender.call("close", group=replica.group) == {}
    again = pair.join(case, senders=[sender], timeout_s=JOIN_S)
    again.publish(4)
    assert again.contents() == contents_of(case, case.state(4))
    again.close()


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
    sender.send_command(
        "join", role="sender", rank=0, device=pair.devices[0], transport=pair.transport, timeout_s=SHORT_S, **words
    )
    assert sender.next_answer().get("error", "").startswith("RendezvousTimeout")
    assert sender.call("compute", device=pair.devices[0]) == {"total": 1000.0}
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
