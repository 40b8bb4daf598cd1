"""Whether the model is there, and whether engines and trainer can use it as asked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from launcher.config.schema import Config

WEIGHTS = ("*.safetensors", "*.bin")
TOKENIZER = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tokenizer_config.json", "tekken.json")


def problems(config: Config) -> Iterator[str]:
    """Uses of the model that cannot work, whichever model it is."""
    model, trainer = config.model, config.trainer
    if config.layout.device == "cpu" and model.dtype == "float16":
        yield (
            f"`model.dtype` ({model.dtype}) is not what vLLM computes in with `layout.device` (cpu)."
            " HINT: set `model.dtype=bfloat16` or `float32`."
        )
    if trainer.command is None:
        if trainer.max_new_tokens >= model.max_length:
            yield (
                f"`trainer.max_new_tokens` ({trainer.max_new_tokens}) leaves no room for a prompt in"
                f" `model.max_length` ({model.max_length}). HINT: set `model.max_length={2 * trainer.max_new_tokens}`"
                " or more."
            )
        if trainer.samples_per_prompt == 1:
            yield (
                "`trainer.samples_per_prompt` (1) gives every GRPO group an advantage of zero, so nothing is learned."
                " HINT: set `trainer.samples_per_prompt=2` or more."
            )
        from launcher.trainers.grpo.tasks import TASKS

        # One of the user's own, MODULE:CLASS, is imported on the nodes.
        if trainer.task not in TASKS and ":" not in trainer.task:
            tasks = ", ".join(TASKS)
            yield f"`trainer.task` ({trainer.task}) is not one of {tasks}. HINT: set `trainer.task={min(TASKS)}`."


def directory_problems(config: Config, path: str) -> Iterator[str]:
    """What is wrong with ``model.path`` as seen from this machine, and what its config.json does not allow."""
    directory = Path(path)
    if not path.strip():
        yield "`model.path` ('') is empty. HINT: name a directory, or set `model.path=null` for a tiny random model."
    elif path.startswith("~"):
        yield f"`model.path` ({path}) is not expanded. HINT: set `model.path={directory.expanduser()}`."
    elif not directory.exists():
        hint = "give the directory of a downloaded model"
        if path.count("/") == 1 and not path.startswith((".", "/")):
            hint = f"download it (`hf download {path} --local-dir DIR`) and set `model.path=DIR`"
        yield f"`model.path` ({path}) does not exist. HINT: {hint}."
    elif not (directory / "config.json").is_file():
        yield (
            f"`model.path` ({path}) holds no config.json, so it is no Hugging Face model. HINT: give the directory in"
            " which config.json lies."
        )
    else:
        yield from _contents(config, directory)


def _contents(config: Config, directory: Path) -> Iterator[str]:
    if not any(next(directory.glob(pattern), None) for pattern in WEIGHTS):
        yield f"`model.path` ({directory}) holds no weights (*.safetensors). HINT: download the whole model."
    if not any((directory / name).is_file() for name in TOKENIZER):
        yield f"`model.path` ({directory}) holds no tokenizer. HINT: save it with `tokenizer.save_pretrained(...)`."
    file = directory / "config.json"
    try:
        described = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        yield f"`model.path` ({directory}) has a config.json that cannot be read: {error}. HINT: download it again."
        return
    if not isinstance(described, dict):
        yield f"`model.path` ({directory}) has a config.json that is no object. HINT: download it again."
        return
    yield from _architecture(config, described.get("text_config") or described)


def _architecture(config: Config, described: dict[str, Any]) -> Iterator[str]:
    inference = config.inference
    heads, size = described.get("num_attention_heads"), inference.tensor_parallel_size
    if isinstance(heads, int) and size > 0 and heads % size:
        yield (
            f"`inference.tensor_parallel_size` ({size}) does not divide the {heads} attention heads of `model.path`"
            f" ({config.model.path}). HINT: choose a divisor of {heads}."
        )
    layers, stages = described.get("num_hidden_layers"), inference.pipeline_parallel_size
    if isinstance(layers, int) and stages > layers:
        yield (
            f"`inference.pipeline_parallel_size` ({stages}) is more than the {layers} layers of `model.path`"
            f" ({config.model.path}). HINT: set `inference.pipeline_parallel_size={layers}` or less."
        )
    longest = described.get("max_position_embeddings")
    if isinstance(longest, int) and config.model.max_length > longest and not described.get("rope_scaling"):
        yield (
            f"`model.max_length` ({config.model.max_length}) is more than the {longest} positions of `model.path`"
            f" ({config.model.path}). HINT: set `model.max_length={longest}` or less."
        )
