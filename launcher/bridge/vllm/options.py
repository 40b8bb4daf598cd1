"""Options of vLLM with which an engine could not be updated rightly, in words for whoever has set them."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

MULTIMODAL = ("torchvision", "mistral_common", "blake3")
"""What vLLM imports for models that take more than text, and the short list of packages for CPUs leaves out."""

RESETTABLE_CONNECTORS = frozenset({"OffloadingConnector", "SimpleCPUOffloadConnector"})
"""Connectors that drop the keys and values that they keep outside of the engine when they are told to."""

UNQUANTIZED = (None, "launcher-plain")
WITHOUT_WEIGHTS = ("ngram", "ngram_gpu", "suffix")
"""Ways to draft tokens that have no weights."""


def refusal(config: Any) -> str | None:
    """Why nothing at all can be published to an engine; None if something can.

    Args:
        config: vLLM's ``VllmConfig``.
    """
    ranks = int(_get(config, "parallel_config.data_parallel_size", 1))
    if ranks > 1:
        return (
            f"This engine is {ranks} data-parallel ones behind one port, of which an update would reach one."
            f" HINT: start {ranks} engines without `--data-parallel-size`, and publish to all of them."
        )
    connector = _get(config, "kv_transfer_config.kv_connector", None)
    if connector is not None and connector not in RESETTABLE_CONNECTORS:
        return (
            f"This engine keeps keys and values outside of itself ({connector}), where those of old weights would stay"
            " in use. HINT: start it without `--kv-transfer-config`; `--kv-offloading-size` may stay."
        )
    return None


def weights_refusal(config: Any) -> str | None:
    """Why a model's weights cannot be published to an engine, which may still take adapters; None if they can."""
    method = _get(config, "model_config.quantization", None)
    if method not in UNQUANTIZED:
        return (
            f"This engine is quantised ({method}, by `--quantization` or by its checkpoint): what vLLM computes from"
            " the weights when it loads them would not follow an update. HINT: start it without `--quantization`, from"
            " a checkpoint in bfloat16."
        )
    if _get(config, "parallel_config.enable_eplb", False):
        return (
            "This engine moves experts between its workers while it serves (`--enable-eplb`), so that an update would"
            " not find them. HINT: start it without `--enable-eplb`."
        )
    if _get(config, "cache_config.calculate_kv_scales", False):
        return (
            "This engine has computed the scales of its keys and values from the weights that it started with"
            " (`--calculate-kv-scales`), and does so once. HINT: start it without that option."
        )
    return None


def missing_packages(model: Path) -> str | None:
    """What vLLM imports for a model and is not installed, in words; None if nothing is known to be missing.

    Args:
        model: the directory of its ``config.json``.
    """
    try:
        config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # for vLLM to say
    if not any(key in config for key in ("vision_config", "audio_config", "thinker_config")):
        return None
    missing = [package for package in MULTIMODAL if find_spec(package) is None]
    if not missing:
        return None
    return (
        f"The model in `{model}` takes images or sounds, for which vLLM needs {' and '.join(missing)}: not installed."
        f" HINT: `pip install {' '.join(missing)}`, of torchvision the build for your torch."
    )


def remarks(config: Any) -> list[str]:
    """What an update leaves as it is, where that costs speed only."""
    method = _get(config, "speculative_config.method", None)
    if method is None or method in WITHOUT_WEIGHTS:
        return []
    return [
        f"its draft model ({method}) keeps the weights that it was started with, beyond what it shares with the model:"
        " answers are right, but fewer drafts are accepted with every update"
    ]


def _get(config: Any, path: str, default: Any) -> Any:
    for name in path.split("."):
        config = getattr(config, name, None)
    return default if config is None else config
