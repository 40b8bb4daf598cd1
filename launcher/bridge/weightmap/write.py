"""Puts a received version into the worker's live parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from launcher.bridge.settings import Mode
from launcher.bridge.weightmap.model import BoundParameter, CopyOp, LoadMethod, WeightMap
from launcher.bridge.weightmap.names import Views, checkpoint_views
from launcher.bridge.weightmap.requirements import regions, reloaded_name, separate_copies
from launcher.common.errors import BridgeError

Load = Callable[[Iterable[tuple[str, Tensor]]], object]
"""Loads whole tensors under the checkpoint's names."""

Pack = Callable[[Tensor], Tensor]
"""From a parameter as the loader writes it to what the engine keeps of it, of the same shape."""


class Writer:
    """Owns the tensors that receive a version, and writes it when all of them are filled.

    Everything is looked up once; `commit` is one grouped copy, and the loader for what is reloaded.

    Args:
        weight_map: Of this worker.
        live: The worker's parameters by name.
        load: For a weight map with reloaded tensors.
        pack: For packed parameters, by name.
        views: As for :func:`launcher.bridge.weightmap.build.build_weight_map`.
        mode: Where a version is received. What cannot be received in place has a copy in every mode.
        after: Computes anew what the engine derives from its parameters.

    Raises:
        BridgeError: The parameters are not those of the weight map, or ``load`` or ``pack`` is missing.
    """

    def __init__(
        self,
        weight_map: WeightMap,
        live: Mapping[str, Tensor],
        *,
        load: Load | None = None,
        pack: Mapping[str, Pack] | None = None,
        views: Views | None = None,
        mode: Mode = Mode.SHADOW,
        after: Callable[[], None] | None = None,
    ) -> None:
        self._weight_map, self._load, self._mode, self._after = weight_map, load, mode, after
        self._views = views or checkpoint_views(weight_map.manifest)
        if weight_map.reloaded and load is None:
            raise BridgeError(f"`{weight_map.reloaded[0]}` goes through the engine's loader, but no loader was given.")
        self.received: dict[str, Tensor] = {}
        """By the names of :func:`launcher.bridge.weightmap.requirements.requirements`: what a receiver unpacks into."""

        self._in_place: set[str] = set()
        self._pack: list[tuple[Tensor, Tensor, Pack]] = []
        self._to: list[Tensor] = []
        self._from: list[Tensor] = []
        device = next(iter(live.values())).device if live else torch.device("cpu")
        for bound in weight_map.parameters:
            check(bound, live)
            parameter = live[bound.name].data
            if bound.method is LoadMethod.PACKED:
                self._packed(bound, parameter, (pack or {}).get(bound.name))
                continue
            if regions(bound) is not None:
                self._received_whole(bound, parameter)
                continue
            for name, copy in separate_copies(bound):
                separate = self._beside(parameter, copy.source_box.shape)
                self.received[name] = separate
                self._pair(place(parameter, copy), separate.view(copy.shape))
        owners = weight_map.owners()
        for source in weight_map.reloaded:
            entry = owners[source]
            like = torch.empty(0, dtype=getattr(torch, entry.dtype), device=device)
            whole = self._beside(like, entry.shape)
            self.received[reloaded_name(source)] = whole

    @property
    def extra_bytes(self) -> int:
        """Memory beyond the live parameters."""
        return sum(t.numel() * t.element_size() for name, t in self.received.items() if name not in self._in_place)

    def commit(self) -> None:
        """Writes what was received. The engine must not run a forward pass meanwhile."""
        with torch.no_grad():
            if self._to:
                torch._foreach_copy_(self._to, self._from)
            for parameter, loaded, pack in self._pack:
                parameter.copy_(pack(loaded))
            if self._load is not None and self._weight_map.reloaded:
                self._load(self._reloaded())
            if self._after is not None:
                self._after()

    def _beside(self, like: Tensor, shape: Sequence[int]) -> Tensor:
        """Memory to receive into, of another tensor's type."""
        if self._mode is not Mode.HOST_SHADOW:
            return torch.empty(shape, dtype=like.dtype, device=like.device)
        # Pinned, so that the copy to the device is one transfer at full speed.
        return torch.empty(shape, dtype=like.dtype, pin_memory=like.device.type == "cuda")

    def _received_whole(self, bound: BoundParameter, parameter: Tensor) -> None:
        if self._mode is Mode.INPLACE:
            self.received[bound.name] = parameter
            self._in_place.add(bound.name)
            return
        shadow = self._beside(parameter, parameter.shape)
        for box in bound.padding:
            # Never received, and written back with the rest.
            shadow[box.slices()].copy_(parameter[box.slices()])
        self.received[bound.name] = shadow
        self._pair(parameter, shadow)

    def _packed(self, bound: BoundParameter, parameter: Tensor, pack: Pack | None) -> None:
        if pack is None or regions(bound) is None or bound.padding:
            raise BridgeError(f"`{bound.name}` is packed by the engine ({bound.reason}) and cannot be written.")
        self.received[bound.name] = self._beside(parameter, parameter.shape)
        self._pack.append((parameter, self.received[bound.name], pack))

    def _pair(self, to: Tensor, source: Tensor) -> None:
        if to.numel():
            self._to.append(to)
            self._from.append(source)

    def _reloaded(self) -> Iterable[tuple[str, Tensor]]:
        whole = {name: self.received[reloaded_name(name)] for name in self._weight_map.reloaded}
        for entry in self._weight_map.manifest:
            tensor = whole.get(entry.alias_of or entry.name)
            if tensor is not None:
                yield from self._views(entry.name, tensor)


def place(parameter: Tensor, copy: CopyOp) -> Tensor:
    """The view of a parameter that a copy fills."""
    return parameter.as_strided(copy.shape, copy.strides, parameter.storage_offset() + copy.offset)


def check(bound: BoundParameter, live: Mapping[str, Tensor]) -> None:
    """Compares a live parameter with the one of the weight map.

    Raises:
        BridgeError: It is missing, or its shape, strides or type have changed.
    """
    tensor = live.get(bound.name)
    if tensor is None:
        raise BridgeError(f"The engine has no parameter `{bound.name}`, which the weight map has.")
    found = tuple(tensor.shape), tuple(tensor.stride()), str(tensor.dtype).removeprefix("torch.")
    if found != (bound.shape, bound.strides, bound.dtype):
        wanted = (bound.shape, bound.strides, bound.dtype)
        raise BridgeError(
            f"The engine's `{bound.name}` is {found} now; the weight map has {wanted}. HINT: build it again."
        )
