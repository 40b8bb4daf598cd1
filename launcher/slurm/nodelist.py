"""Node lists as SLURM writes them: ``rack[0-1]n[01-03],login,gpu[1,5-7]-ib``."""

from __future__ import annotations

import re
from itertools import product

_PART = re.compile(r"\[([^\[\]]*)\]|([^\[\],]+)")
_RANGE = re.compile(r"(\d+)-(\d+)")


def expand_nodelist(text: str) -> list[str]:
    """The names that a node list stands for, in SLURM's order.

    A list is names separated by commas. A name may hold any number of brackets; each holds numbers and ranges
    separated by commas, and a range keeps the width of its first number (``[08-10]``). Of several brackets the last
    one varies fastest. White space around names is ignored.

    Raises:
        ValueError: it is no node list.
    """
    return [name for word in _words(text) for name in _expand(word)]


def _words(text: str) -> list[str]:
    """The names of a list, with their brackets: split at the commas outside of them."""
    words, depth, begin = [], 0, 0
    for index, char in enumerate(text):
        if char == "[":
            depth += 1
        elif char == "]":
            depth -= 1
        elif char == "," and depth == 0:
            words.append(text[begin:index].strip())
            begin = index + 1
        if depth not in (0, 1):
            raise ValueError(f"not a node list: {text!r} has unbalanced brackets")
    if depth:
        raise ValueError(f"not a node list: {text!r} has unbalanced brackets")
    words.append(text[begin:].strip())
    if words == [""]:
        return []
    if not all(words):
        raise ValueError(f"not a node list: {text!r} has an empty name")
    return words


def _expand(word: str) -> list[str]:
    choices: list[list[str]] = []
    for inside, plain in _PART.findall(word):
        choices.append([plain] if plain else _numbers(inside, word))
    return ["".join(parts) for parts in product(*choices)]


def _numbers(text: str, word: str) -> list[str]:
    found: list[str] = []
    for part in text.split(","):
        if part.isdecimal():
            found.append(part)
        elif (match := _RANGE.fullmatch(part)) and int(match[1]) <= int(match[2]):
            width = len(match[1])
            found += [f"{number:0{width}}" for number in range(int(match[1]), int(match[2]) + 1)]
        else:
            raise ValueError(f"not a node list: {part!r} in {word!r} is neither a number nor a range")
    return found
