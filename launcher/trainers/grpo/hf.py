"""The few calls into transformers, which is not typed, with the types they have."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

if not sys.stderr.isatty():
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # a bar in a log is one endless line


def new_config(architecture: str, **sizes: Any) -> Any:
    """A model's configuration by the name of its architecture, such as ``qwen3``."""
    return AutoConfig.for_model(architecture, **sizes)


def new_model(config: Any, dtype: torch.dtype) -> Any:
    """A model of random weights; buffers that need float32 keep it."""
    return AutoModelForCausalLM.from_config(config, dtype=dtype)  # type: ignore[no-untyped-call]


def load_causal_lm(path: Path, dtype: torch.dtype) -> torch.nn.Module:
    """The model in a directory."""
    model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    return model


def load_tokenizer(path: Path) -> Any:
    """The tokenizer in a directory."""
    return AutoTokenizer.from_pretrained(path)
