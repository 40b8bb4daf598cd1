"""Verifiable tasks: generated problems whose answers are checked exactly; and what ``trainer.options`` may hold."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from importlib import import_module
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One question with its one right answer."""

    prompt: str
    answer: str


class Task(ABC):
    """Makes problems and judges completions."""

    @abstractmethod
    def draw(self, count: int, rng: random.Random) -> list[Problem]:
        """``count`` problems, all of them different as long as the task has that many."""

    def reward(self, problem: Problem, completion: str, *, finished: bool) -> float:
        """1 if the completion is the answer and nothing else, and the model ended it itself; else 0.

        There is no partial credit: what rises during training is the share of right answers.
        """
        return float(finished and completion.strip() == problem.answer)


class Addition(Task):
    """``a+b=`` for non-negative ``a`` and ``b`` with a sum of at most ``max_sum``."""

    def __init__(self, *, max_sum: int, prompt: str) -> None:
        if max_sum < 1:
            raise ConfigError([f"`trainer.options.max_sum` ({max_sum}) must be at least 1."])
        self._max_sum = max_sum
        self._prompt = prompt

    def draw(self, count: int, rng: random.Random) -> list[Problem]:
        """Draws without replacement, starting over when all pairs were drawn."""
        pairs = (self._max_sum + 1) * (self._max_sum + 2) // 2
        indices = [index for _ in range(count // pairs) for index in range(pairs)]
        indices += rng.sample(range(pairs), count % pairs)
        rng.shuffle(indices)
        return [self._problem(index) for index in indices]

    def _problem(self, index: int) -> Problem:
        # Pairs in the order of their sums: sum s owns the s + 1 indices from s (s + 1) / 2 on.
        total = int(((8 * index + 1) ** 0.5 - 1) / 2)
        a = index - total * (total + 1) // 2
        return Problem(prompt=self._prompt.format(a=a, b=total - a), answer=str(total))


TASKS: dict[str, Callable[[Options], Task]] = {
    "addition": lambda options: Addition(max_sum=options.max_sum, prompt=options.prompt),
}
"""Tasks by the name that ``trainer.task`` takes."""


def make_task(name: str, options: Options) -> Task:
    """The task called ``name``, or the one that ``MODULE:CLASS`` names; its class takes the :class:`Options`.

    Raises:
        ConfigError: there is no such task.
    """
    if name in TASKS:
        return TASKS[name](options)
    module, colon, attribute = name.partition(":")
    if not (colon and attribute.isidentifier() and all(part.isidentifier() for part in module.split("."))):
        hint = f"use one of {', '.join(sorted(TASKS))}, or MODULE:CLASS of your own"
        raise ConfigError([f"`trainer.task` ({name}) is not a task. HINT: {hint}."])
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        hint = "the module must lie in the directory that you submit from, or be installed"
        raise ConfigError([f"`trainer.task` ({name}) cannot be imported: {error}. HINT: {hint}."]) from error
    task = found(options)
    if not isinstance(task, Task):
        raise ConfigError([f"`trainer.task` ({name}) is not a `launcher.trainers.grpo.tasks.Task`."])
    return task


def draw_for_rank(task: Task, *, count: int, seed: int, step: int, rank: int, world_size: int) -> list[Problem]:
    """This rank's share of the step's ``count`` problems.

    Every rank draws the same list from (seed, step) and takes every ``world_size``-th: no two ranks share a problem,
    and the step's data do not depend on the number of ranks.
    """
    return task.draw(count, random.Random(f"{seed}/{step}"))[rank::world_size]
