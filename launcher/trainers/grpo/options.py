"""The reference trainer's own settings: what ``trainer.options`` may hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from launcher.common.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Settings of ``trainer.options``, each with its default."""

    max_sum: int = 9
    """Largest sum that ``addition`` asks for."""

    prompt: str = "{a}+{b}="
    """How ``addition`` asks."""

    chat_template: bool = False
    """Puts each prompt into the tokenizer's chat template, as the user's message."""

    entropy_coef: float = 0.0
    """Weight of the entropy bonus. A random model needs one: without it the first answer that is ever rewarded soon
    is the only one it gives."""

    epochs: int = 1
    """Optimizer steps on each batch."""

    micro_batch: int = 512
    """Most sequences in one forward pass of a rank."""

    request_timeout_s: float = 300.0
    """Longest wait for the answers to one prompt, time in the engine's queue included."""

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Options:
        """The options in ``values``.

        Raises:
            ConfigError: a name is unknown, or a value has the wrong type.
        """
        defaults = cls()
        known = {field.name: type(getattr(defaults, field.name)) for field in fields(cls)}
        problems = [
            f"`trainer.options.{name}` is not an option of the reference trainer. HINT: use one of {', '.join(known)}."
            for name in values
            if name not in known
        ]
        converted: dict[str, Any] = {}
        for name in known.keys() & values.keys():
            value = values[name]
            # YAML reads 1 as an integer where a number with a fraction is meant.
            converted[name] = float(value) if known[name] is float and type(value) is int else value
            if type(converted[name]) is not known[name]:
                problems.append(f"`trainer.options.{name}` ({value!r}) must be a {known[name].__name__}.")
        if problems:
            raise ConfigError(problems)
        return cls(**converted)
