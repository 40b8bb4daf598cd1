"""A low-rank adapter (LoRA) as a trainer has it: its matrices under PEFT's names, and PEFT's description of it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import nn

from launcher.bridge.trainer.module_state import Weight
from launcher.common.errors import BridgeError

PREFIX = "base_model.model."
MATRIX = re.compile(r"(?P<module>.*\.lora_(embedding_)?[AB])(\.(?P<which>[^.]+?))??(?P<weight>\.weight)?")
"""A matrix's name; a model of PEFT's has the adapter's own name in it, a file has not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """Which one, and what it is."""

    name: str
    """Under which engines serve it: the ``model`` of a request."""

    config: Mapping[str, Any]
    """What PEFT writes into ``adapter_config.json``: ``r``, ``lora_alpha``, ``target_modules`` and so on."""


def adapter_of(name: str, config: Any) -> Adapter:
    """An adapter's name with its description.

    Args:
        name: of the adapter.
        config: PEFT's ``LoraConfig``, or a mapping as in ``adapter_config.json``.

    Raises:
        BridgeError: it names neither a rank nor an alpha.
    """
    fields = dict(config) if isinstance(config, Mapping) else dict(config.to_dict())
    missing = [key for key in ("r", "lora_alpha") if not isinstance(fields.get(key), int | float)]
    if missing:
        raise BridgeError(f"The adapter {name!r} has no `{missing[0]}` in its configuration.")
    return Adapter(name=name, config=json.loads(json.dumps(fields, default=_plain, sort_keys=True)))


def adapter_weights(source: nn.Module | Mapping[str, torch.Tensor], peft_name: str = "default") -> list[Weight]:
    """An adapter's matrices, sorted by name, as PEFT writes them: ``base_model.model.<module>.lora_A.weight``.

    Args:
        source: a model that PEFT has put adapters into, or tensors by name; sharded or not.
        peft_name: which of a model's adapters; it is no part of the names.

    Raises:
        BridgeError: there are none.
    """
    tensors = source.state_dict(keep_vars=True) if isinstance(source, nn.Module) else source
    found = {}
    for name, tensor in tensors.items():
        match = MATRIX.fullmatch(name)
        if match is not None and match["which"] in (None, peft_name):
            short = match["module"] + (match["weight"] or "")
            found[short if short.startswith(PREFIX) else PREFIX + short] = tensor
    if not found:
        raise BridgeError(
            f"None of {len(tensors)} tensors is an adapter's. HINT: names have `.lora_A.` and `.lora_B.`."
        )
    return [Weight.of(name, found[name]) for name in sorted(found)]


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    return sorted(value) if isinstance(value, set | frozenset) else str(value)
