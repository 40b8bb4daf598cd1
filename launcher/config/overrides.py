"""What a person types as an override, in the form that Hydra reads as it was meant.

- Old names of settings become the new ones (:mod:`launcher.config.renamed`).
- Text stays text: ``name=12e4`` is no number, ``cluster.env.FLAG=true`` no truth value.
- Settings that take any name, as ``cluster.env`` and ``cluster.sbatch`` do, need no plus sign.
- A command may be written as a shell would split it: ``'trainer.command=python train.py --lr=1e-3'``.

Which settings are text, tables or commands is read from the schema.
"""

from __future__ import annotations

import re
import shlex
import types
import typing
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from typing import Any, get_args, get_origin

from launcher.common.errors import ConfigError
from launcher.config.renamed import check_given_once, current_name, with_current_names
from launcher.config.schema import COMMAND, NODELIST, TEXT, Config

_OVERRIDE = re.compile(r"(?P<sign>\+\+|\+|~|)(?P<path>[A-Za-z_][\w.]*)=(?P<value>.*)", re.DOTALL)
_OPENING, _CLOSING = "([{", ")]}"
# What Hydra makes a number, a truth value or nothing of.
_NO_TEXT = re.compile(r"[-+]?[0-9._]+(e[-+]?[0-9_]+)?|[-+]?(inf|nan)|true|false|null", re.IGNORECASE)
_NULL = re.compile(r"null", re.IGNORECASE)
# What Hydra reads as text without quotes.
_PLAIN = re.compile(r"[A-Za-z0-9_/.:+%@?|*-]([A-Za-z0-9_/.:+%@?|* -]*[A-Za-z0-9_/.:+%@?|*-])?")
# Quotes, escapes, lists, tables, functions and references have a meaning of their own.
_STRUCTURED = re.compile(r"""['"\\()\[\]{}]|\$\{""")
_CHOICE = re.compile(r"choice\((.*)\)", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """The schema's entry for one path."""

    hint: Any
    """Its type."""

    syntax: str | None = None
    """:data:`COMMAND`, :data:`NODELIST`, :data:`TEXT`, or nothing special."""

    is_in_table: bool = False
    """Whether it is an entry of a table that takes any name."""

    @property
    def may_be_null(self) -> bool:
        """Whether ``null`` is a value of its own, not text."""
        return self.syntax == TEXT or type(None) in get_args(self.hint)

    @property
    def type(self) -> Any:
        """The type without ``None``."""
        return without_none(self.hint)


def as_meant(words: Sequence[str]) -> list[str]:
    """Words of a command line with every override rewritten; other words, such as ``-m``, stay.

    Raises:
        ConfigError: a setting is given under both of its names, or a command has an unclosed quote.
    """
    parts = [_OVERRIDE.fullmatch(word) for word in words]
    check_given_once(part["path"] for part in parts if part is not None)
    return [word if part is None else _override(part) for word, part in zip(words, parts, strict=True)]


def _override(part: re.Match[str]) -> str:
    sign, path, value = part["sign"], current_name(part["path"]), part["value"]
    setting = setting_at(path)
    if setting is None:
        return f"{sign}{path}={value}"
    is_table = get_origin(setting.type) is dict and value.lstrip().startswith("{")
    if (setting.is_in_table or is_table) and not sign:
        # Adds what is new and replaces what is there, which a preset may have set.
        sign = "++"
    return f"{sign}{path}={_values(value, setting, path)}"


def setting_at(path: str) -> Setting | None:
    """The schema's entry for ``path``; None for what is no setting."""
    setting: Setting | None = Setting(hint=Config)
    for name in path.split("."):
        setting = member_of(setting, name) if setting is not None else None
    return setting


def setting_paths(config: Any, prefix: str = "", *, groups: bool = True) -> Iterator[str]:
    """The path of every setting below ``config``; with ``groups`` those of its groups, too."""
    for field in fields(config):
        value, path = getattr(config, field.name), f"{prefix}{field.name}"
        if groups or not is_dataclass(value):
            yield path
        if is_dataclass(value):
            yield from setting_paths(value, f"{path}.", groups=groups)


@cache
def members(owner: Hashable) -> Mapping[str, Setting]:
    """Settings of a group by name, with those that only some kinds of it have, as kinds of cluster do."""
    found: dict[str, Setting] = {}
    group = typing.cast("type[Any]", owner)
    for kind in (group, *group.__subclasses__()):
        hints = typing.get_type_hints(kind)
        for field in fields(kind):
            found.setdefault(field.name, Setting(hint=hints[field.name], syntax=field.metadata.get("syntax")))
    return found


def without_none(hint: Any) -> Any:
    """``str`` of ``str | None``."""
    if get_origin(hint) in (types.UnionType, typing.Union):
        (hint,) = (kind for kind in get_args(hint) if kind is not type(None))
    return hint


def _values(value: str, setting: Setting, path: str) -> str:
    """A value, or the values of a sweep, in Hydra's syntax."""
    if setting.syntax == NODELIST and not _is_null(value, setting):
        return _nodelist(value)
    if setting.syntax == COMMAND and not value.lstrip().startswith(("[", "${", "choice(")):
        return value if _is_null(value, setting) else _listed(_shell_words(value, path))
    if match := _CHOICE.fullmatch(value.strip()):
        return f"choice({_values(match.group(1), setting, path)})"
    return ",".join(_one(element, setting, path) for element in split(value))


def _one(text: str, setting: Setting, path: str) -> str:
    """One value."""
    bare, kind = text.strip(), setting.type
    if bare.startswith("[") and bare.endswith("]") and get_origin(kind) is list:
        item = Setting(hint=get_args(kind)[0])
        return f"[{','.join(_one(element, item, path) for element in split(bare[1:-1]))}]"
    if bare.startswith("{") and bare.endswith("}"):
        return f"{{{','.join(_pairs(bare[1:-1], setting, path))}}}"
    if (setting.syntax == TEXT or kind is str) and is_to_quote(bare, setting):
        return quoted(bare)
    return text


def _pairs(text: str, setting: Setting, path: str) -> Iterator[str]:
    """``name: value`` of a table, or of a group, whose values are settings themselves."""
    elements = [(name.strip(), colon, value) for name, colon, value in (part.partition(":") for part in split(text))]
    check_given_once(f"{path}.{name}" for name, _, _ in elements)
    for name, colon, value in elements:
        below = current_name(f"{path}.{name}")
        member = member_of(setting, below.rpartition(".")[2])
        new = below.rpartition(".")[2] if is_dataclass(setting.type) else name
        yield f"{new}{colon}{value if member is None else f' {_one(value, member, below).strip()}'}"


def member_of(setting: Setting, name: str) -> Setting | None:
    """The schema's entry for one name in a group or a table."""
    kind: Any = setting.type
    if is_dataclass(kind):
        return members(typing.cast(Hashable, kind)).get(name)
    if get_origin(kind) is dict:
        return Setting(hint=get_args(kind)[1], syntax=setting.syntax, is_in_table=True)
    # A table in a table.
    return Setting(hint=Any, syntax=setting.syntax, is_in_table=True) if setting.is_in_table else None


def is_to_quote(text: str, setting: Setting) -> bool:
    """Whether Hydra would make something else than text of ``text``, or refuse it."""
    if not text or _STRUCTURED.search(text):
        return False
    if setting.syntax == TEXT and text.lower() in ("true", "false"):
        # An option without a value, or one that is removed.
        return False
    if _NO_TEXT.fullmatch(text):
        return not _is_null(text, setting)
    return not _PLAIN.fullmatch(text)


def quoted(text: str) -> str:
    """``text`` as a string in Hydra's syntax; ``${...}`` in it still refers to another setting."""
    # Backslashes count only before a quote, and at the end.
    escaped = re.sub(r"(\\*)('|$)", lambda match: match[1] * 2 + ("\\'" if match[2] else ""), text)
    return f"'{escaped}'"


def split(text: str) -> list[str]:
    """``text`` at its commas, but not at those in brackets or quotes."""
    parts, start, depth, quote, is_escaped = [], 0, 0, "", False
    for index, char in enumerate(text):
        if is_escaped:
            is_escaped = False
        elif char == "\\":
            is_escaped = True
        elif quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        elif char in _OPENING:
            depth += 1
        elif char in _CLOSING:
            depth -= 1
        elif char == "," and depth == 0:
            parts.append(text[start:index])
            start = index + 1
    return [*parts, text[start:]] if text else []


def _is_null(text: str, setting: Setting) -> bool:
    return setting.may_be_null and _NULL.fullmatch(text.strip()) is not None


def _nodelist(value: str) -> str:
    """Nodes as SLURM writes them, ``rack[0-1]n[01-03],login``, or as a list."""
    bare = value.strip()
    if bare.startswith(("'", '"', "${")):
        return value
    if bare.startswith("[") and bare.endswith("]"):
        bare = bare[1:-1]
    return _listed([element.strip().strip("'\"") for element in split(bare)])


def _shell_words(value: str, path: str) -> list[str]:
    """The words of a command; of one in Hydra's quotes, those inside of the quotes.

    Raises:
        ConfigError: a quote is not closed.
    """
    bare = value.strip()
    if len(split(bare)) == 1 and bare[:1] in ("'", '"') and bare.endswith(bare[0]):
        bare = bare[1:-1].replace(f"\\{bare[0]}", bare[0])
    return command_words(bare, path)


def command_words(text: str, path: str) -> list[str]:
    """``text`` as a shell would split it.

    Raises:
        ConfigError: a quote is not closed.
    """
    try:
        return shlex.split(text)
    except ValueError as error:
        raise ConfigError(
            [f"`{path}` ({text}) cannot be split into words: {error}. HINT: quote it as for a shell."]
        ) from error


def _listed(words: Sequence[str]) -> str:
    return f"[{','.join(map(quoted, words))}]"


def file_values(data: Any, typed_text: Any, prefix: str = "") -> Any:
    """What a YAML file holds, with current names, and with text settings as they were written.

    Args:
        data: the file as YAML reads it.
        typed_text: the same with every value as text.
        prefix: path of the file's content in the configuration.
    """
    owner = setting_at(prefix) if prefix else Setting(hint=Config)
    kept = data if owner is None else _as_written(data, typed_text, owner, prefix)
    return with_current_names(kept, prefix)


def _as_written(data: Any, written: Any, setting: Setting, path: str) -> Any:
    if setting.syntax == COMMAND and isinstance(data, str) and "${" not in data:
        return command_words(data, path)
    if setting.syntax == NODELIST and isinstance(data, str) and "${" not in data:
        return split(data)
    if isinstance(data, dict) and isinstance(written, dict):
        found = {}
        for key, value in data.items():
            below = f"{path}.{key}".lstrip(".")
            member = member_of(setting, str(key))
            found[key] = value if member is None else _as_written(value, written.get(key), member, below)
        return found
    if isinstance(data, list) and isinstance(written, list) and get_origin(setting.type) is list:
        item = Setting(hint=get_args(setting.type)[0])
        return [_as_written(value, text, item, path) for value, text in zip(data, written, strict=True)]
    is_text = setting.type is str or (setting.syntax == TEXT and not isinstance(data, bool))
    return written if is_text and isinstance(written, str) and not isinstance(data, str | None) else data
