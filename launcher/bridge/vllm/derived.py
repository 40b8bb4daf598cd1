"""What vLLM computes from parameters after it has loaded them, found by letting it compute them again."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from launcher.bridge.vllm import layers
from launcher.bridge.weightmap.state import Held, Writes, different, reachable, snapshot
from launcher.common.errors import BridgeError

CONSTANT = re.compile(r".*\b_?(k|v|q|prob)_scale(_cpu|_float)?")
"""What vLLM sets to one where a checkpoint has no scales: it follows from no weight."""


@dataclass(frozen=True, slots=True)
class _Renewed:
    module: Any
    held: Held


class DerivedTensors:
    """The attention layers that keep something computed from weights: the absorbed matrices of latent attention.

    Every layer's own post-processing is run once, with the weights that it has served with: what it writes or replaces
    is derived, and must come out as it was. Memory: that of one layer's derived tensors at a time.

    Args:
        model: of this worker, as it serves.
        dtype: in which it computes.

    Raises:
        BridgeError: something derived comes out as another value, or cannot be computed again.
    """

    def __init__(self, model: nn.Module, dtype: Any) -> None:
        self._dtype = dtype
        self._renewed: list[_Renewed] = []
        self._convolutions = layers.packed_convolutions(model)
        self.names: list[str] = []
        """Paths of what is derived."""
        if callable(getattr(model, "process_weights_after_loading", None)):
            raise BridgeError(
                f"vLLM finishes the weights of {type(model).__name__} as a whole after loading, which cannot be"
                " repeated on an engine that serves."
            )
        for prefix, module in model.named_modules():
            if layers.is_processed_attention(module):
                self._probe(prefix, module)

    def renew(self) -> None:
        """Computes everything again, into the memory that it has. The engine must not run a forward pass meanwhile."""
        for renewed in self._renewed:
            renewed.module.process_weights_after_loading(self._dtype)
            renewed.held.take_over()
        for convolution in self._convolutions:
            convolution.renew()

    @property
    def as_loaded(self) -> dict[str, Tensor]:
        """Parameters that the engine has packed, in the form in which a loader writes them; renewed from there."""
        return {convolution.name: convolution.loaded for convolution in self._convolutions}

    def copies(self, model: nn.Module, live: Mapping[str, Tensor]) -> list[str]:
        """Paths of tensors that hold the values of a parameter in memory of their own, which no update would reach.

        Args:
            live: parameters by name, in loaded form.
        """
        storages = {tensor.untyped_storage()._cdata for tensor in live.values()}
        known = {id(mirror) for convolution in self._convolutions for mirror in convolution.mirrors}
        known |= {id(convolution.module.weight) for convolution in self._convolutions}
        sizes: dict[int, list[Tensor]] = {}
        for tensor in live.values():
            sizes.setdefault(tensor.numel(), []).append(tensor)
        return [
            path
            for path, tensor in reachable(model).items()
            if tensor.untyped_storage()._cdata not in storages
            and id(tensor) not in known
            and path not in self.names
            and tensor.is_floating_point()
            and any(_is_copy(tensor, other) for other in sizes.get(tensor.numel(), ()))
        ]

    def _probe(self, prefix: str, module: Any) -> None:
        held, before, writes = Held(module), snapshot(module), Writes()
        try:
            with writes:
                module.process_weights_after_loading(self._dtype)
            found = {*held.changed(), *held.in_storages(writes.storages)}
            names = sorted(name for name in found if not CONSTANT.fullmatch(name))
        finally:
            held.take_over()
        wrong = [name for name in different(before, snapshot(module)) if not CONSTANT.fullmatch(name)]
        held.set_values(before)
        if wrong:
            raise BridgeError(f"vLLM's `{prefix}.{wrong[0]}` is not what its own post-processing makes of the weights.")
        if names:
            self._renewed.append(_Renewed(module, held))
            self.names += [f"{prefix}.{name}" for name in names]


def _is_copy(tensor: Tensor, other: Tensor) -> bool:
    if tensor.numel() < 2 or tensor.device != other.device or not other.is_floating_point():
        return False
    values = other.reshape(-1)
    varied = bool((values != values[0]).any())  # constants are equal to each other without being copies
    return varied and bool((tensor.reshape(-1).to(other.dtype) == values).all())
