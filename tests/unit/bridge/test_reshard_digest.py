"""The digest does not depend on the sharding, and sees every change."""

from __future__ import annotations

import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from launcher.bridge.codec.checksum import COLUMN_SALT, MASK, column_weights, combine, digest, row_weights
from launcher.bridge.plan import Box, Sharding
from launcher.bridge.plan.sharding import fsdp, fsdp_tp, hsdp, tensor_parallel

DTYPES = [torch.bfloat16, torch.float32, torch.float64, torch.uint8, torch.int8, torch.float8_e4m3fn, torch.bool]
shapes = st.lists(st.integers(1, 9), min_size=0, max_size=4).map(tuple)


def noise(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    if dtype == torch.bool:
        return torch.randint(0, 2, shape).bool()
    return (
        torch.randint(0, 256, (torch.Size(shape).numel() * dtype.itemsize,), dtype=torch.uint8).view(dtype).view(shape)
    )


def mix(x: int) -> int:
    z = (x + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def by_definition(tensor: torch.Tensor) -> int:
    """The sum over bytes, as the module's docstring has it, in Python's integers."""
    matrix = tensor.reshape(1, -1) if tensor.dim() < 2 else tensor.reshape(-1, tensor.shape[-1])
    total = 0
    for r, row in enumerate(matrix.contiguous().view(torch.uint8).tolist()):
        for j, x in enumerate(row):
            value = x - 256 if j % 4 == 3 and x > 127 else x
            total += (mix(r) | 1) * (mix(j // 4 ^ COLUMN_SALT) | 1) * value * 256 ** (j % 4)
    return total & MASK


@given(shapes, st.sampled_from(DTYPES))
def test_it_is_the_definition(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    tensor = noise(shape, dtype)
    assert digest(tensor) == by_definition(tensor)


def test_weights_are_splitmix64_and_odd() -> None:
    rows, columns = row_weights(torch.arange(5)), column_weights(3, 7, torch.device("cpu"))
    assert [int(w) & MASK for w in rows] == [mix(r) | 1 for r in range(5)]
    assert [int(w) & MASK for w in columns] == [mix(c ^ COLUMN_SALT) | 1 for c in range(3, 7)]
    assert mix(0) == 0xE220A8397B1DCDAF, "the published first output for seed 0"


@given(shapes.filter(len), st.sampled_from(DTYPES), st.data())
def test_boxes_of_any_partition_add_up(shape: tuple[int, ...], dtype: torch.dtype, data: st.DataObject) -> None:
    tensor, boxes = noise(shape, dtype), [Box.full(shape)]
    for _ in range(data.draw(st.integers(0, 8))):
        box = boxes.pop(data.draw(st.integers(0, len(boxes) - 1)))
        axis = data.draw(st.integers(0, len(shape) - 1))
        at = data.draw(st.integers(box.start[axis], box.stop[axis]))
        boxes += [box.narrow(axis, box.start[axis], at), box.narrow(axis, at, box.stop[axis])]
    strided = sum(digest(tensor[box.slices()], box=box, shape=shape) for box in boxes)
    packed = sum(digest(tensor[box.slices()].clone(), box=box, shape=shape) for box in boxes)
    assert strided & MASK == packed & MASK == digest(tensor)


@pytest.mark.parametrize(
    "sharding", [fsdp(5), hsdp(2, 3), tensor_parallel(1, 3, 1), fsdp_tp(2, 3, 0), fsdp_tp(2, 2, 1)]
)
def test_every_sharding_of_a_large_tensor_gives_one_digest(sharding: Sharding) -> None:
    tensor = noise((1003, 777), torch.bfloat16)
    boxes = dict.fromkeys(sharding.boxes(tensor.shape))
    assert sum(digest(tensor[b.slices()], box=b, shape=tensor.shape) for b in boxes) & MASK == digest(tensor)


@given(shapes.filter(lambda s: len(s) and torch.Size(s).numel() > 1), st.sampled_from(DTYPES[:6]), st.data())
def test_every_flipped_bit_is_seen(shape: tuple[int, ...], dtype: torch.dtype, data: st.DataObject) -> None:
    tensor = noise(shape, dtype)
    changed = tensor.clone()
    raw = changed.view(-1).view(torch.uint8)
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert digest(changed) != digest(tensor)


def test_elements_in_the_wrong_places_are_seen() -> None:
    tensor = noise((64, 96), torch.bfloat16)
    whole = digest(tensor)
    for moved in (
        tensor.roll(1, 0),
        tensor.roll(1, 1),
        tensor.roll(32, 0),
        tensor.flip(0),
        tensor.T.reshape(64, 96),
        tensor[torch.randperm(64)],
    ):
        assert digest(moved) != whole
    swapped = tensor.clone()
    swapped[3, 5], swapped[9, 7] = tensor[9, 7], tensor[3, 5]
    assert digest(swapped) != whole
    assert digest(tensor[:, :48], box=Box((0, 48), (64, 96)), shape=(64, 96)) != digest(
        tensor[:, :48], box=Box((0, 0), (64, 48)), shape=(64, 96)
    )


def test_two_changed_signs_are_seen() -> None:
    """Top bits of two words: where a digest of full 64-bit words is always blind."""
    tensor = torch.randn(32, 32, dtype=torch.bfloat16)
    for column in (0, 1, 2, 3):
        changed = tensor.clone()
        changed[0, column] *= -1
        changed[7, column + 4] *= -1
        assert digest(changed) != digest(tensor)


def test_tensors_that_changed_places_are_seen() -> None:
    a, b = digest(noise((8, 8), torch.float32)), digest(noise((8, 8), torch.float32))
    assert combine({"a": a, "b": b}) != combine({"a": b, "b": a})
    assert (combine({"a": a}) + combine({"b": b})) & MASK == combine({"b": b, "a": a})


def test_a_tensor_that_does_not_fill_its_box_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fill"):
        digest(torch.zeros(3, 4), box=Box((0, 0), (3, 3)), shape=(4, 4))


@pytest.mark.slow
def test_the_speed_is_printed() -> None:
    tensor = noise((4096, 8192), torch.bfloat16)
    target = torch.empty_like(tensor)
    nbytes = tensor.numel() * 2

    def speed(work: object) -> float:
        best = float("inf")
        for _ in range(3):
            started = time.perf_counter()
            work()  # type: ignore[operator]
            best = min(best, time.perf_counter() - started)
        return nbytes / best / 1e9

    copy = speed(lambda: target.copy_(tensor))
    for what, view, box in (
        ("whole", tensor, Box.full(tensor.shape)),
        ("aligned columns", tensor[:, 2048:6144], Box((0, 2048), (4096, 6144))),
        ("odd columns", tensor[:, 2047:6143], Box((0, 2047), (4096, 6143))),
    ):
        ours = speed(lambda view=view, box=box: digest(view, box=box, shape=tensor.shape)) * box.volume / tensor.numel()
        print(f"digest, {what}: {ours:.2f} GB/s = {ours / copy:.2f} of memcpy ({copy:.2f} GB/s)")
    assert copy > 0


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 5), (33, 1025), (70, 2048)])
def test_the_gpu_kernel_is_the_same_sum(rows: int, columns: int) -> None:
    """Runs on a GPU, or anywhere with TRITON_INTERPRET=1."""
    pytest.importorskip("triton")
    from launcher.bridge.codec.checksum_cuda import weighted_sum

    device = "cuda" if torch.cuda.is_available() else "cpu"
    words = torch.randint(-(2**31), 2**31, (rows, columns + 3), dtype=torch.int32, device=device)[:, 1 : columns + 1]
    a, b = row_weights(torch.arange(rows, device=device)), column_weights(0, columns, torch.device(device))
    expected = torch.dot(torch.mv(words.cpu().long(), b.cpu()), a.cpu())
    assert int(weighted_sum(words, a, b)) == int(expected)
