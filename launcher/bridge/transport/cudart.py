"""The few calls of CUDA's run-time library that torch does not offer: memory that another process may map."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from launcher.common.errors import TransferError

HANDLE_BYTES = 64
LAZY_PEER_ACCESS = 1
"""``cudaIpcMemLazyEnablePeerAccess``: the only flag there is, and required."""

DEFAULT_KIND = 4
"""``cudaMemcpyDefault``: where each address lies is known to the driver."""

INVALID_CONTEXT = 201
"""``CUDA_ERROR_INVALID_CONTEXT``."""

_RANGE_ATTRIBUTES = (ctypes.c_int * 3)(7, 11, 12)
"""``CU_POINTER_ATTRIBUTE_BUFFER_ID``, ``..._RANGE_START_ADDR``, ``..._RANGE_SIZE``."""


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
    _call(
        "cudaMemcpyAsync",
        *(ctypes.c_void_p(target), ctypes.c_void_p(source), ctypes.c_size_t(nbytes)),
        *(ctypes.c_int(DEFAULT_KIND), ctypes.c_void_p(stream.cuda_stream)),
    )


def copy_rows(
    target: int, target_pitch: int, source: int, source_pitch: int, width: int, rows: int, stream: torch.cuda.Stream
) -> None:
    """Enqueues a copy of rows between memory of any GPUs; pitches are bytes from one row to the next."""
    _call(
        "cudaMemcpy2DAsync",
        *(ctypes.c_void_p(target), ctypes.c_size_t(target_pitch)),
        *(ctypes.c_void_p(source), ctypes.c_size_t(source_pitch)),
        *(ctypes.c_size_t(width), ctypes.c_size_t(rows)),
        *(ctypes.c_int(DEFAULT_KIND), ctypes.c_void_p(stream.cuda_stream)),
    )


class AllocationRange(NamedTuple):
    """An allocation of the driver's."""

    identity: int
    """Of this allocation alone, in this process: memory that is allocated at its address later has another one."""

    base: int
    nbytes: int


def allocation_at(address: int) -> AllocationRange | None:
    """The allocation that an address of GPU memory lies in; None if there is none, or it cannot be told."""
    identity, base, nbytes = ctypes.c_ulonglong(0), ctypes.c_ulonglong(0), ctypes.c_size_t(0)
    data = (ctypes.c_void_p * 3)(*(ctypes.addressof(value) for value in (identity, base, nbytes)))
    arguments = (ctypes.c_uint(3), _RANGE_ATTRIBUTES, data, ctypes.c_ulonglong(address))
    code = _driver().cuPointerGetAttributes(*arguments)
    if code == INVALID_CONTEXT:  # The thread has none yet; any call of the run-time library makes one current.
        _call("cudaFree", ctypes.c_void_p(None))
        code = _driver().cuPointerGetAttributes(*arguments)
    if code != 0 or not base.value or not identity.value:
        return None
    return AllocationRange(identity.value, base.value, nbytes.value)


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
    """The very library that torch has loaded: a second copy would have a current GPU of its own."""
    torch.cuda.init()  # type: ignore[no-untyped-call]
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        if "libcudart" in line:
            return ctypes.CDLL(line.split(maxsplit=5)[5])
    raise TransferError("failed: torch has loaded no libcudart.")


@cache
def _driver() -> ctypes.CDLL:
    """The driver's library, which the process has once however often it is opened."""
    return ctypes.CDLL("libcuda.so.1")
