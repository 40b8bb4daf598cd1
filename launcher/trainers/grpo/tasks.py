"""Verifiable tasks: problems that are generated, and whose answers are checked exactly."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

from launcher.common.errors import ConfigError
from launcher.trainers.grpo.options import Options


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
