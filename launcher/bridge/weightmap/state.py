"""Everything that a model holds, in nested objects too: what it is, and putting it back as it was."""

from __future__ import annotations

import functools
import types
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

DEPTH = 8
"""How deep objects that are no modules are followed."""

PASSING = frozenset(
    {"kv_cache", "static_forward_context", "topk_indices_buffer", "workspace", "lora_manager", "punica_wrapper"}
)
"""Attributes that hold what a forward pass leaves there, and no weights."""

PASSED_OVER = ("vllm.config", "torch.distributed", "logging", "concurrent", "threading", "enum", "re", "transformers.")
LEAVES = (str, bytes, int, float, complex, bool, type, types.ModuleType, torch.device, torch.dtype, torch.Size)


def reachable(model: nn.Module) -> dict[str, Tensor]:
    """Parameters, buffers and plain attributes, by the path on which each is first found.

    The order is that of the modules, so that it is the same in every engine of one configuration.
    """
    return {path: value for path, value, _ in _walk(model) if isinstance(value, Tensor)}


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all reachable tensors."""
    return {name: tensor.detach().clone() for name, tensor in reachable(model).items()}


def different(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> list[str]:
    """Paths that only one of two states has, or whose shapes, types or bytes are not the same."""
    missing = sorted(a.keys() ^ b.keys())
    return missing + [name for name in a if name in b and not _same(a[name], b[name])]


@dataclass(slots=True)
class _Kept:
    path: str
    holder: dict[Any, Any] | list[Any]
    content: dict[Any, Any] | list[Any]


class Held:
    """Which objects a model holds, where, and the memory of its tensors: a reference, not a copy.

    Args:
        model: any module; nothing is copied.
    """

    def __init__(self, model: nn.Module) -> None:
        self._kept: list[_Kept] = []
        self._tensors: list[tuple[str, Tensor, Tensor]] = []
        for path, value, holder in _walk(model):
            if isinstance(value, Tensor):
                self._tensors.append((path, value, value.detach()))
            elif holder is not None:
                self._kept.append(_Kept(path, holder, holder.copy()))

    def changed(self) -> list[str]:
        """Paths whose object is another one now, or whose tensor has other memory or was written."""
        found = [f"{kept.path}.{name}".lstrip(".") for kept in self._kept for name in _changed(kept)]
        found += [path for path, tensor, data in self._tensors if not _is_same_memory(tensor, data)]
        return found

    def in_storages(self, storages: Container[int]) -> list[str]:
        """Paths of the tensors whose storage is one of these (of :class:`Writes`)."""
        return [path for path, _, data in self._tensors if data.untyped_storage()._cdata in storages]

    def take_over(self) -> None:
        """Copies what replaces a tensor into the memory of the one that was held, and puts that back."""
        with torch.no_grad():
            for kept in self._kept:
                for name in list(_changed(kept)):
                    old, new = _get(kept.content, name), _get(kept.holder, name)
                    if isinstance(old, Tensor) and isinstance(new, Tensor) and old.shape == new.shape:
                        old.copy_(new)
            for _, tensor, data in self._tensors:
                if not _is_same_memory(tensor, data) and tensor.shape == data.shape:
                    data.copy_(tensor)
        self.put_back()

    def set_values(self, values: Mapping[str, Tensor]) -> None:
        """Writes values of :func:`snapshot` where a tensor has others."""
        with torch.no_grad():
            for path, tensor, _ in self._tensors:
                if path in values and not _same(tensor, values[path]):
                    tensor.copy_(values[path])

    def put_back(self) -> None:
        """Makes the model hold the very objects that it held; values that were written stay."""
        for kept in self._kept:
            if isinstance(kept.holder, dict):
                if any(True for _ in _changed(kept)):
                    kept.holder.clear()
                    kept.holder.update(kept.content)
            else:
                kept.holder[:] = kept.content
        for _, tensor, data in self._tensors:
            if not _is_same_memory(tensor, data):
                tensor.data = data


class Writes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is entered, notes which storages are written in place, through whatever view of them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.storages: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Called for every operation below autograd."""
        result = func(*args, **(kwargs or {}))
        given = {**dict(zip((a.name for a in func._schema.arguments), args, strict=False)), **(kwargs or {})}
        for argument in func._schema.arguments:
            if argument.alias_info is not None and argument.alias_info.is_write:
                value = given.get(argument.name)
                tensors = value if isinstance(value, list | tuple) else [value]
                self.storages.update(t.untyped_storage()._cdata for t in tensors if isinstance(t, Tensor))
        return result


def _changed(kept: _Kept) -> Iterator[Any]:
    now, before = (dict(x) if isinstance(x, dict) else dict(enumerate(x)) for x in (kept.holder, kept.content))
    for name in {**before, **now}:
        old, new = before.get(name, kept), now.get(name, kept)
        if old is not new and not (isinstance(old, LEAVES) and old == new):
            yield name


def _get(holder: dict[Any, Any] | list[Any], name: Any) -> Any:
    return holder.get(name) if isinstance(holder, dict) else holder[name] if name < len(holder) else None


def _is_same_memory(a: Tensor, b: Tensor) -> bool:
    return (
        a.untyped_storage()._cdata == b.untyped_storage()._cdata
        and a.storage_offset() == b.storage_offset()
        and a.shape == b.shape
        and a.stride() == b.stride()
    )


def _same(a: Tensor, b: Tensor) -> bool:
    if (a.shape, a.dtype) != (b.shape, b.dtype):
        return False
    return torch.equal(*(t.contiguous().reshape(-1).view(torch.uint8) for t in (a, b)))


Found = tuple[str, Any, "dict[Any, Any] | list[Any] | None"]


def _walk(model: nn.Module) -> Iterator[Found]:
    """Tensors, and what holds others: its path, itself, and the dictionary or list that can be put back."""
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        attributes = vars(module)
        for holder in (attributes, module._parameters, module._buffers, module._modules):
            yield prefix, module, holder
        for holder in (module._parameters, module._buffers, attributes):
            for name, value in list(holder.items()):
                if name not in PASSING and name not in ("_parameters", "_buffers", "_modules"):
                    yield from _below(f"{prefix}.{name}" if prefix else name, value, seen, DEPTH)


def _below(path: str, value: Any, seen: set[int], depth: int) -> Iterator[Found]:
    if value is None or isinstance(value, LEAVES) or id(value) in seen or depth == 0:
        return
    if isinstance(value, Tensor):
        seen.add(id(value))
        yield path, value, None
        return
    if isinstance(value, nn.Module) or type(value).__module__.startswith(PASSED_OVER):
        return  # modules are visited under their own names
    seen.add(id(value))
    holder = value if isinstance(value, dict | list) else getattr(value, "__dict__", None)
    yield path, value, holder if isinstance(holder, dict | list) else None
    for name, inner in _inside(value):
        if name not in PASSING:
            yield from _below(f"{path}.{name}", inner, seen, depth - 1)


def _inside(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        yield from [(str(key), inner) for key, inner in value.items()]
    elif isinstance(value, list | tuple | set | frozenset):
        yield from [(str(i), inner) for i, inner in enumerate(value)]
    elif isinstance(value, functools.partial):
        yield from (("func", value.func), ("args", value.args), ("keywords", value.keywords))
    elif isinstance(value, types.MethodType):
        yield "self", value.__self__
    elif isinstance(value, types.FunctionType):
        for i, cell in enumerate(value.__closure__ or ()):
            try:
                yield f"cell{i}", cell.cell_contents
            except ValueError:  # an empty cell
                continue
    elif isinstance(holder := getattr(value, "__dict__", None), dict):
        yield from list(holder.items())
