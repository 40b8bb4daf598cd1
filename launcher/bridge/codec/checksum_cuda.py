"""The digest's sum on a GPU: each word is read once and nothing is written but one number per block."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

BLOCK_ROWS = 32
BLOCK_COLUMNS = 1024


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _weighted_sum(  # type: ignore[no-untyped-def]
    words, a, b, out, rows, columns, stride, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr
):
    block = tl.program_id(0)
    across = tl.cdiv(columns, BLOCK_COLUMNS)
    top = (block // across).to(tl.int64) * BLOCK_ROWS
    column = (block % across) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    inside = column < columns
    total = tl.zeros((BLOCK_COLUMNS,), tl.int64)
    for row in range(top, tl.minimum(top + BLOCK_ROWS, rows)):
        # int32 to int64 keeps the sign, as the definition wants; products and sums wrap mod 2**64.
        word = tl.load(words + row * stride + column, mask=inside, other=0).to(tl.int64)
        total += word * tl.load(a + row)
    tl.store(out + block, tl.sum(total * tl.load(b + column, mask=inside, other=0)))


def weighted_sum(words: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Sum of ``a[r] * words[r, c] * b[c]`` mod 2**64, as an int64 scalar on the device.

    Args:
        words: int32, shape (rows, columns), columns contiguous.
        a: int64, shape (rows,).
        b: int64, shape (columns,).
    """
    rows, columns = words.shape
    blocks = triton.cdiv(rows, BLOCK_ROWS) * triton.cdiv(columns, BLOCK_COLUMNS)
    out = torch.empty(blocks, dtype=torch.int64, device=words.device)
    _weighted_sum[(blocks,)](
        words, a, b, out, rows, columns, words.stride(0), BLOCK_ROWS=BLOCK_ROWS, BLOCK_COLUMNS=BLOCK_COLUMNS
    )
    return out.sum()
