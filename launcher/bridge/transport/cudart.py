"""The few calls of CUDA's run-time library that torch does not offer: memory that another process may map."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import torch

from launcher.common.errors import TransferError

HANDLE_BYTES = 64
LAZY_PEER_ACCESS = 1
"""``cudaIpcMemLazyEnablePeerAccess``: the only flag there is, and required."""


class _Handle(ctypes.Structure):
    """``cudaIpcMemHandle_t``; passed by value."""

    _fields_ = (("reserved", ctypes.c_byte * HANDLE_BYTES),)


def allocate(device: torch.device, nbytes: int) -> int:
    """Address of new memory on a GPU. Not torch's: only whole allocations can be handed over.

    Raises:
        TransferError: there is none left.
    """
    pointer = ctypes.c_void_p()
    with torch.cuda.device(device):
        _call("cudaMalloc", ctypes.byref(pointer), ctypes.c_size_t(nbytes))
    assert pointer.value is not None
    return pointer.value


def free(device: torch.device, pointer: int) -> None:
    """Gives memory back; nobody may have it mapped."""
    with torch.cuda.device(device):
        _call("cudaFree", ctypes.c_void_p(pointer))


def handle(pointer: int) -> bytes:
    """What another process maps this memory with."""
    found = _Handle()
    _call("cudaIpcGetMemHandle", ctypes.byref(found), ctypes.c_void_p(pointer))
    return bytes(found.reserved)


def map_handle(device: torch.device, data: bytes) -> int:
    """Address of another process's memory, mapped for one GPU: the one that will copy, whose copy engines then do."""
    found = _Handle()
    ctypes.memmove(ctypes.byref(found), data, HANDLE_BYTES)
    pointer = ctypes.c_void_p()
    with torch.cuda.device(device):
        _call("cudaIpcOpenMemHandle", ctypes.byref(pointer), found, ctypes.c_uint(LAZY_PEER_ACCESS))
    assert pointer.value is not None
    return pointer.value


def unmap(device: torch.device, pointer: int) -> None:
    """Ends a mapping."""
    with torch.cuda.device(device):
        _call("cudaIpcCloseMemHandle", ctypes.c_void_p(pointer))


def copy(target: int, source: int, nbytes: int, stream: torch.cuda.Stream) -> None:
    """Enqueues a copy of memory of any GPU."""
    default_kind = 4  # cudaMemcpyDefault: where each address lies is known to the driver.
    _call(
        "cudaMemcpyAsync",
        *(ctypes.c_void_p(target), ctypes.c_void_p(source), ctypes.c_size_t(nbytes)),
        *(ctypes.c_int(default_kind), ctypes.c_void_p(stream.cuda_stream)),
    )


def tensor_at(pointer: int, nbytes: int, device: torch.device) -> torch.Tensor:
    """Memory as a uint8 tensor of shape (nbytes,); it does not own it."""
    return torch.as_tensor(_Span(pointer, nbytes), device=device)


class _Span:
    """What ``__cuda_array_interface__``, version 3, asks for."""

    def __init__(self, pointer: int, nbytes: int) -> None:
        self.__cuda_array_interface__ = {
            "shape": (nbytes,),
            "typestr": "|u1",
            "data": (pointer, False),
            "version": 3,
            "strides": None,
        }


def _call(name: str, *arguments: Any) -> None:
    code = getattr(_library(), name)(*arguments)
    if code != 0:
        text = _library().cudaGetErrorString
        text.restype = ctypes.c_char_p
        # The error stays with the thread and would be reported again, by torch, as its own.
        _library().cudaGetLastError()
        raise TransferError(f"failed: {name}: {text(code).decode()}.")


@cache
def _library() -> ctypes.CDLL:
    """The very library that torch has loaded: a second one would have another idea of the current GPU."""
    torch.cuda.init()  # type: ignore[no-untyped-call]
    for line in Path("/proc/self/maps").read_text().splitlines():
        if "libcudart" in line:
            return ctypes.CDLL(line.split(maxsplit=5)[5])
    raise TransferError("failed: torch has loaded no libcudart.")
