"""Secrets that were written into a configuration. They would end in files; the environment is their place."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from launcher.config.schema import Config
from launcher.config.secrets import is_secret, secret_values
from launcher.layout.environment import is_protected

_ENVIRONMENTS = re.compile(r"(cluster|trainer|inference)\.env\.(\w+)")
# In capitals, as variables are: `data.prompt_key=prompt` is none. What is fetched at run time is no secret, either:
# `export HF_TOKEN=$(cat ~/.token)`.
_ASSIGNMENT = re.compile(r"""(?<![A-Za-z0-9_$])([A-Z_][A-Z0-9_]*)['"]?\s*[=:]\s*(?!['"]?\$|\s|['"]?$)""")
_OPTION = re.compile(r"--?([\w-]*(?:api|access|auth|secret)[-_]?(?:key|token)|[\w-]*password)=(?!\$|$)", re.IGNORECASE)


def secret_problems(config: Config) -> Iterator[str]:
    """One message per secret, which names the setting and never the value."""
    values = secret_values(config.secrets)
    for path, text in _strings(config, ""):
        found = _ENVIRONMENTS.fullmatch(path)
        if found is not None and is_protected(found.group(2)):
            # Another rule reports that it is the launcher's own.
            continue
        if found is not None and is_secret(found.group(2), config.secrets):
            yield f"`{path}` is a secret, which would be written into files.{_instead(found.group(2))}"
        elif name := _secret_in(text, values, config.secrets):
            yield f"`{path}` holds the secret {name}, which would be written into files.{_instead(name)}"


def word_problems(words: Sequence[str]) -> Iterator[str]:
    """The same for a command line, before anything, such as the record of a sweep, is made of it."""
    values = secret_values()
    for word in words:
        if name := _secret_in(word, values, ()):
            setting = f"`{word.partition('=')[0]}`" if "=" in word else "A word of the command line"
            if any(value in setting for value in values.values()):
                setting = "A word of the command line"
            yield f"{setting} holds the secret {name}, which would be written into files.{_instead(name)}"


def _secret_in(text: str, values: Mapping[str, str], further: Sequence[str]) -> str | None:
    """The variable whose secret is in ``text``, by its value or because it is set there: ``export HF_TOKEN=hf_...``."""
    if held := next((name for name, value in values.items() if value in text), None):
        return held
    if option := _OPTION.search(text):
        return option.group(1).strip("-").replace("-", "_").upper()
    return next((name for name in _ASSIGNMENT.findall(text) if is_secret(name, further)), None)


def _instead(name: str) -> str:
    if is_protected(name):
        return " HINT: leave it out; every run makes one of its own."
    return f" HINT: leave it out and `export {name}=...` before you submit; every process of the run then has it."


def _strings(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """Every string in a configuration with the path of its setting."""
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _strings(getattr(value, field.name), f"{path}.{field.name}" if path else field.name)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _strings(item, f"{path}.{key}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _strings(item, f"{path}[{index}]")
    elif isinstance(value, str):
        yield path, value
