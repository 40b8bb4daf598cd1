"""One rank of the reference trainer: its model, data and optimizer, and what it does in a step."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from launcher.bridge import Bridge
from launcher.checkpoint import Checkpoints
from launcher.common.errors import ConfigError
from launcher.config.schema import Config
from launcher.trainers.grpo.hf import load_tokenizer
from launcher.trainers.grpo.model import TrainerRank, load_model
from launcher.trainers.grpo.rollout import Completion, Engines
from launcher.trainers.grpo.tasks import Options, Task, draw_for_rank, make_task
from launcher.trainers.grpo.update import Updater, make_batch


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """What one step reports; over all ranks."""

    version: int
    reward: float
    """Mean reward of the step's completions."""

    loss: float
    grad_norm: float
    tokens_per_s: float
    """Sampled tokens over the step's whole time."""

    length: float
    """Mean tokens of a completion."""

    mismatch: float
    mismatch_max: float
    seconds: float
    rollout_s: float
    update_s: float
    sync_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Trainer:
    """One rank of the reference trainer."""

    config: Config
    options: Options
    worker: TrainerRank
    tokenizer: Any
    task: Task
    model: torch.nn.Module
    update: Updater
    checkpoints: Checkpoints
    """The position in the data is the step: problems are drawn from it."""

    @classmethod
    def create(cls, config: Config, worker: TrainerRank, model_path: Path) -> Trainer:
        """Loads the model; every rank calls it.

        Raises:
            ConfigError: a setting is wrong, or does not fit the number of ranks.
        """
        settings, options = config.trainer, Options.parse(config.trainer.options)
        if settings.prompts_per_step % worker.world_size:
            raise ConfigError(
                [
                    f"`trainer.prompts_per_step` ({settings.prompts_per_step}) is not a multiple of the number of "
                    f"trainer ranks ({worker.world_size}). HINT: set `trainer.prompts_per_step` to a multiple of it."
                ]
            )
        model = load_model(model_path, worker)
        # A short memory of squared gradients: which answers are rewarded changes within tens of steps.
        optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, betas=(0.9, 0.95), weight_decay=0.0)
        return cls(
            config=config,
            options=options,
            worker=worker,
            tokenizer=load_tokenizer(model_path),
            task=make_task(settings.task, options),
            model=model,
            update=Updater(
                model=model,
                optimizer=optimizer,
                worker=worker,
                dtype=config.model.dtype,
                temperature=settings.temperature,
                micro_batch=options.micro_batch,
                epochs=options.epochs,
                entropy_coef=options.entropy_coef,
            ),
            checkpoints=Checkpoints.of_run(model=model, optimizer=optimizer),
        )

    def step(self, step: int, engines: Engines, bridge: Bridge) -> StepReport:
        """Samples, judges, updates the model and publishes it as version ``step``; every rank calls it."""
        settings, worker = self.config.trainer, self.worker
        started = time.perf_counter()
        problems = draw_for_rank(
            self.task,
            count=settings.prompts_per_step,
            seed=settings.seed,
            step=step,
            rank=worker.rank,
            world_size=worker.world_size,
        )
        prompts = [self.encode(problem.prompt) for problem in problems]
        groups = self.sample(step, prompts, engines, bridge)
        rewards = [
            [self.task.reward(problem, self.decode(answer), finished=answer.finished) for answer in group]
            for problem, group in zip(problems, groups, strict=True)
        ]
        sampled = time.perf_counter()
        batch = make_batch(prompts, groups, rewards, pad=self.pad_token_id, device=worker.device)
        update = self.update(batch)
        updated = time.perf_counter()
        published = bridge.publish(self.model, version=step)
        seconds = time.perf_counter() - started
        tokens, total = worker.reduce([float(batch.mask.sum()), sum(map(sum, rewards))])
        completions = settings.prompts_per_step * settings.samples_per_prompt
        return StepReport(
            version=published.version,
            reward=total / completions,
            loss=update.loss,
            grad_norm=update.grad_norm,
            tokens_per_s=tokens / seconds,
            length=tokens / completions,
            mismatch=update.mismatch,
            mismatch_max=update.mismatch_max,
            seconds=seconds,
            rollout_s=sampled - started,
            update_s=updated - sampled,
            sync_s=published.seconds,
        )

    def sample(
        self, step: int, prompts: Sequence[Sequence[int]], engines: Engines, bridge: Bridge
    ) -> list[list[Completion]]:
        """The answers to this rank's prompts; every rank calls it.

        Engines may go away meanwhile. When a rank finds none left, all ranks together wait for one to come back, and
        give it the weights that it lacks.
        """
        settings, worker = self.config.trainer, self.worker
        bridge.rejoin(self.model)
        answers: list[list[Completion] | None] = [None] * len(prompts)
        while True:
            answers = engines.fill(
                answers,
                prompts,
                samples=settings.samples_per_prompt,
                max_tokens=settings.max_new_tokens,
                temperature=settings.temperature,
                seed=(settings.seed * 1_000_003 + step) * worker.world_size + worker.rank,
            )
            (missing,) = worker.reduce([float(answers.count(None))])
            if not missing:
                return [answer for answer in answers if answer is not None]
            bridge.rejoin(self.model)

    @property
    def pad_token_id(self) -> int:
        """Any token will do where nothing looks; not every tokenizer has one for padding."""
        return int(self.tokenizer.pad_token_id or 0)

    def encode(self, prompt: str) -> list[int]:
        """The prompt's token ids, in the chat template if that is wanted."""
        if not self.options.chat_template:
            return list(self.tokenizer(prompt)["input_ids"])
        messages = [{"role": "user", "content": prompt}]
        encoded = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
        return list(encoded["input_ids"])

    def decode(self, completion: Completion) -> str:
        """The completion's text, special tokens other than the end of sequence included."""
        return str(self.tokenizer.decode(completion.answer_ids()))

    def check_prompts(self, count: int) -> Sequence[list[int]]:
        """The same ``count`` prompts at every call."""
        problems = draw_for_rank(self.task, count=count, seed=-1, step=0, rank=0, world_size=1)
        return [self.encode(problem.prompt) for problem in problems]
