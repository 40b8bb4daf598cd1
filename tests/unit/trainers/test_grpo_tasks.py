"""The verifiable task: what is drawn, how it is shared out, and what is right."""

from __future__ import annotations

import random

import pytest

from launcher.common.errors import ConfigError
from launcher.trainers.grpo.tasks import Options, Problem, draw_for_rank, make_task


def test_addition_asks_each_pair_once_before_it_repeats() -> None:
    task = make_task("addition", Options(max_sum=3))
    problems = task.draw(10, random.Random(0))
    assert {problem.prompt for problem in problems} == {f"{a}+{b}=" for a in range(4) for b in range(4 - a)}
    assert len(task.draw(25, random.Random(0))) == 25


@pytest.mark.parametrize("max_sum", [1, 9, 198])
def test_addition_answers_are_the_sums(max_sum: int) -> None:
    for problem in make_task("addition", Options(max_sum=max_sum)).draw(200, random.Random(1)):
        a, b = problem.prompt.removesuffix("=").split("+")
        assert int(problem.answer) == int(a) + int(b) <= max_sum


@pytest.mark.parametrize(
    ("completion", "finished", "reward"),
    [("7", True, 1.0), (" 7 ", True, 1.0), ("7", False, 0.0), ("77", True, 0.0), ("7=", True, 0.0), ("", True, 0.0)],
)
def test_only_the_whole_answer_counts(completion: str, finished: bool, reward: float) -> None:
    task = make_task("addition", Options())
    assert task.reward(Problem(prompt="3+4=", answer="7"), completion, finished=finished) == reward


def test_ranks_share_one_draw() -> None:
    task = make_task("addition", Options())

    def share(rank: int, world_size: int) -> list[Problem]:
        return draw_for_rank(task, count=12, seed=5, step=3, rank=rank, world_size=world_size)

    whole, first, second = share(0, 1), share(0, 2), share(1, 2)
    assert [problem for pair in zip(first, second, strict=True) for problem in pair] == whole
    assert not {problem.prompt for problem in first} & {problem.prompt for problem in second}
    assert draw_for_rank(task, count=12, seed=5, step=4, rank=0, world_size=1) != whole


def test_unknown_task_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match=r"`trainer.task` \(chess\) is not a task"):
        make_task("chess", Options())


def test_options_name_every_problem() -> None:
    with pytest.raises(ConfigError, match=r"`trainer.options.entropy` is not an option") as caught:
        Options.parse({"entropy": 1, "epochs": "two", "entropy_coef": 1})
    assert len(caught.value.problems) == 2
    assert Options.parse({"entropy_coef": 1}).entropy_coef == 1.0
