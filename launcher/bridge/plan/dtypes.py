"""Element types by torch's names, and which one travels when the two sides differ."""

from __future__ import annotations

from launcher.common.errors import BridgeError

ITEMSIZE = {
    "float64": 8, "int64": 8, "float32": 4, "int32": 4, "bfloat16": 2, "float16": 2, "int16": 2,
    "float8_e4m3fn": 1, "float8_e5m2": 1, "int8": 1, "uint8": 1, "bool": 1,
}  # fmt: skip
"""Bytes per element."""

CASTABLE = frozenset({"float64", "float32", "bfloat16", "float16"})
"""Types between which a plain cast is meant; anything else needs scales, which are tensors of their own."""


def wire_dtype(source: str, target: str) -> str:
    """The type in which an element travels: the smaller one, so that a cast up never costs bandwidth.

    Raises:
        BridgeError: Either type is unknown, or a plain cast between them would lose the meaning of the values.
    """
    for name in (source, target):
        if name not in ITEMSIZE:
            raise BridgeError(f"`dtype` ({name}) is not one of {', '.join(ITEMSIZE)}.")
    if source == target:
        return source
    if not {source, target} <= CASTABLE:
        raise BridgeError(
            f"A plain cast from {source} to {target} is not meaningful. HINT: send {target} with its scales."
        )
    # At equal size (float16, bfloat16) the sender casts, so that what is verified is what the engine stores.
    return source if ITEMSIZE[source] < ITEMSIZE[target] else target
