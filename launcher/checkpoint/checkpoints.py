"""Saves and restores what a trainer needs to continue exactly where it stopped."""

from __future__ import annotations

import base64
import io
import json
import logging
import os
import random
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint._nested_dict import flatten_state_dict
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from launcher.checkpoint import store
from launcher.checkpoint.group import CheckpointGroup
from launcher.common.env import LAUNCHER_RUN_DIR
from launcher.common.errors import LauncherError
from launcher.control.emit import emit
from launcher.events.schema import CheckpointChanged, CheckpointLoaded

logger = logging.getLogger(__name__)

T = TypeVar("T")


class CheckpointError(LauncherError):
    """A checkpoint was not written, or the one that is there does not fit. Raised on every rank."""


class Stateful(Protocol):
    """What has a state: a scheduler, averaged weights, a stateful data loader."""

    def state_dict(self) -> dict[str, Any]:
        """Its state: tensors, numbers, texts, bytes, and dicts and lists of those."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes to that state."""


class Checkpoints:
    """The checkpoints of one trainer in one directory. Every rank makes it, and calls each method together.

    The model may be a plain module, or sharded by FSDP2 or tensor parallelism; each rank writes its own shards. Another
    number of ranks may resume: shards are cut anew. Ranks that did not exist keep their own random numbers then.

    Args:
        directory: made if it is missing; on a filesystem that all ranks see.
        data: what knows the position in the data; each rank has its own.
        states: what else has a state, by name, such as a scheduler or averaged weights: the same on every rank, or
            DTensors. It must have the same keys when it is restored.
        every_steps: how often :meth:`is_due` is true; 0 for never.
        keep: complete checkpoints that are kept; older ones are removed after the next one is complete.
        timeout_s: longest wait for the slowest rank.
    """

    def __init__(
        self,
        directory: Path,
        *,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        data: Stateful | None = None,
        states: Mapping[str, Stateful] | None = None,
        every_steps: int = 0,
        keep: int = 2,
        timeout_s: float = 600.0,
    ) -> None:
        self.directory = directory
        self.every_steps = every_steps
        self._model = model
        self._optimizer = optimizer
        self._data = data
        self._states = dict(states or {})
        self._keep = keep
        self._group = CheckpointGroup(timeout_s)
        self._device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        self._saved: int | None = None

    @classmethod
    def of_run(
        cls,
        *,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        data: Stateful | None = None,
        states: Mapping[str, Stateful] | None = None,
    ) -> Self:
        """Those of the run that this process belongs to, as its configuration's ``checkpoint`` wants them.

        Raises:
            LauncherError: this process is not a trainer of a run.
        """
        from launcher.common.run_dir import checkpoint_dir
        from launcher.config import load_run_config

        path = os.environ.get(LAUNCHER_RUN_DIR)
        if not path:
            raise LauncherError(
                "`LAUNCHER_RUN_DIR` is not set: this process is not a trainer of a run. HINT: start the program through"
                " `launcher` (`trainer.command`), or, without a run, call `Checkpoints(directory, ...)`."
            )
        run_dir = Path(path)
        config = load_run_config(run_dir)
        return cls(
            checkpoint_dir(config.checkpoint.dir, run_dir),
            model=model,
            optimizer=optimizer,
            data=data,
            states=states,
            every_steps=config.checkpoint.every_steps,
            keep=config.checkpoint.keep,
            timeout_s=config.checkpoint.write_timeout_s,
        )

    def is_due(self, step: int) -> bool:
        """Whether ``step`` is one after which to save."""
        return self.every_steps > 0 and step % self.every_steps == 0

    def save(self, step: int, *, version: int | None = None) -> Path:
        """Writes a checkpoint of the state after ``step``; does nothing if that is the one that is there.

        Args:
            version: of the weights, as the engines know it; ``step`` if they count alike.

        Raises:
            CheckpointError: it was not written; what was there before is untouched.
        """
        path = store.checkpoint_path(self.directory, step)
        if self._saved == step:
            return path
        began = time.monotonic()
        if self._group.is_main:
            emit(CheckpointChanged(state="begin", step=step, path=str(path)))
        try:
            size = self._write(step, step if version is None else version, path)
        except CheckpointError as error:
            if self._group.is_main:
                emit(CheckpointChanged(state="failed", step=step, path=str(path), reason=str(error)))
            raise
        self._saved = step
        if self._group.is_main:
            seconds = time.monotonic() - began
            emit(CheckpointChanged(state="end", step=step, path=str(path), seconds=seconds, bytes=size))
        return path

    def restore(self) -> int:
        """Loads the latest complete checkpoint, if there is one. One whose content is damaged is passed over.

        Returns:
            The step after which it was written; 0 if there is none.

        Raises:
            CheckpointError: it is one of another model, or its states are not those that are to be restored; or it is
                one of another number of ranks, which had different positions in the data.
        """
        complete = [str(path) for path in store.complete_checkpoints(self.directory)] if self._group.is_main else None
        for path in map(Path, self._group.from_main(complete)):
            manifest = store.read_manifest(path)
            mine = sorted(manifest.files)[self._group.rank :: self._group.world_size]
            found = self._together(f"read {path}", lambda: store.wrong_files(path, manifest, mine))  # noqa: B023
            wrong = [name for names in found for name in names]
            if wrong:
                logger.warning("%s is damaged (%s) and is passed over", path, ", ".join(wrong))
                continue
            self._load(path, manifest.world_size)
            self._saved = manifest.step
            if self._group.is_main:
                emit(CheckpointLoaded(step=manifest.step, version=manifest.version, path=str(path)))
            return manifest.step
        return 0

    def _write(self, step: int, version: int, path: Path) -> int:
        group = self._group
        owner = f"{os.environ.get('LAUNCHER_ATTEMPT', '0')}.{os.environ.get('LAUNCHER_RESTART_COUNT', '0')}"
        draft = store.draft_path(self.directory, step, owner)

        def begin() -> None:
            if group.is_main:
                self.directory.mkdir(parents=True, exist_ok=True)
                shutil.rmtree(draft, ignore_errors=True)
                draft.mkdir()

        def write() -> dict[str, dict[str, Any]]:
            own = {
                "random": _random_state(self._device),
                "data": _encoded(self._data.state_dict() if self._data else None),
            }
            store.write_durably(draft / _rank_file(group.rank), json.dumps(own))
            names = [_rank_file(group.rank), *(file.name for file in draft.glob(f"__{group.rank}_*.distcp"))]
            if group.is_main:
                names.append(".metadata")
            return {name: asdict(store.describe(draft / name)) for name in names}

        def complete() -> int:
            if not group.is_main:
                return 0
            files = {name: store.File(**file) for part in parts for name, file in part.items()}
            manifest = store.Manifest(
                step=step, version=version, world_size=group.world_size, time=time.time(), files=files
            )
            store.complete(draft, path, manifest)
            store.prune(self.directory, path, self._keep)
            return manifest.size

        self._together(f"write {path}", begin)
        self._together(f"write {path}", lambda: self._save_shards(draft))
        parts = self._together(f"write {path}", write)
        return self._together(f"write {path}", complete)[0]

    def _save_shards(self, draft: Path) -> None:
        state = self._state()
        if self._group.is_alone:
            dcp.save(state, checkpoint_id=draft, no_dist=True)
        else:
            dcp.save(state, checkpoint_id=draft, process_group=self._group.process_group)

    def _state(self) -> dict[str, Any]:
        state = dict(zip(("model", "optimizer"), get_state_dict(self._model, self._optimizer), strict=True))
        return state | {f"states.{name}": one.state_dict() for name, one in self._states.items()}

    def _load(self, path: Path, world_size: int) -> None:
        def load() -> None:
            state = self._state()
            _check_states(path, state)
            if self._group.is_alone:
                dcp.load(state, checkpoint_id=path, no_dist=True)
            else:
                dcp.load(state, checkpoint_id=path, process_group=self._group.process_group)
            set_state_dict(
                self._model, self._optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"]
            )
            for name, one in self._states.items():
                one.load_state_dict(state[f"states.{name}"])
            own = _of_rank(path, self._group.rank % world_size)
            if self._data is not None:
                if world_size != self._group.world_size:
                    _check_data(path, world_size, self._group.world_size)
                self._data.load_state_dict(_decoded(own["data"]))
            if self._group.rank < world_size:
                _set_random_state(own["random"], self._device)

        self._together(f"load {path}", load)

    def _together(self, what: str, action: Callable[[], T]) -> list[T]:
        """Runs ``action`` on every rank; its JSON results, in the order of the ranks, if it worked on all of them."""
        problem: str | None = None
        result: T | None = None
        try:
            with warnings.catch_warnings():
                # torch warns a single process that there is no group.
                warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninit")
                result = action()
        # DCP raises what a rank raised as an error of its own, which is no Exception.
        except (Exception, dcp.api.CheckpointException) as error:
            problem = f"{type(error).__name__}: {error}"
            logger.warning("could not %s", what, exc_info=True)
        answers = self._group.all_gather([problem, result])
        problems = {rank: problem for rank, (problem, _) in enumerate(answers) if problem is not None}
        if problems:
            rank, problem = next(iter(problems.items()))
            raise CheckpointError(f"Could not {what}: trainer rank {rank}: {problem}")
        return [result for _, result in answers]


def _check_states(path: Path, state: dict[str, Any]) -> None:
    """torch loads what is asked for, and says nothing of the rest."""
    written = dcp.FileSystemReader(path).read_metadata().state_dict_metadata
    asked = flatten_state_dict(state)[0]
    for here, there, what in ((asked, written, "has no"), (written, asked, "has")):
        if odd := sorted(key for key in here if key.startswith("states.") and key not in there):
            raise CheckpointError(
                f"{path} {what} `{odd[0].removeprefix('states.')}`{f' and {len(odd) - 1} more' if odd[1:] else ''}"
                f"{', which' if what == 'has' else ', but it'} is {'not ' if what == 'has' else ''}to be restored."
                " HINT: give `Checkpoints` the same `states` as when it was written."
            )


def _check_data(path: Path, world_size: int, now: int) -> None:
    if len({json.dumps(_of_rank(path, rank)["data"], sort_keys=True) for rank in range(world_size)}) > 1:
        raise CheckpointError(
            f"{path} was written by {world_size} trainer ranks with different positions in the data, but there are"
            f" {now}. HINT: resume with the same number of ranks, or pass no `data`."
        )


def _of_rank(path: Path, rank: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((path / _rank_file(rank)).read_text(encoding="utf-8"))
    return found


def _encoded(state: Any) -> Any:
    """As JSON: what is JSON already as it is, so that people can read it; the rest as torch writes it."""
    try:
        if json.loads(json.dumps(state)) == state:
            return state
    except TypeError:
        pass
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return {"torch.save": base64.b64encode(buffer.getvalue()).decode()}


def _decoded(state: Any) -> Any:
    if isinstance(state, dict) and state.keys() == {"torch.save"}:
        return torch.load(io.BytesIO(base64.b64decode(state["torch.save"])), weights_only=True)
    return state


def _rank_file(rank: int) -> str:
    return f"rank-{rank:05d}.json"


def _random_state(device: torch.device) -> dict[str, Any]:
    """State of the generators of Python, torch and the GPU as JSON; of numpy if the program uses it."""
    version, words, gauss = random.getstate()
    state: dict[str, Any] = {"python": [version, list(words), gauss], "torch": _text(torch.get_rng_state())}
    if device.type == "cuda":
        state["cuda"] = _text(torch.cuda.get_rng_state(device))
    if (numpy := sys.modules.get("numpy")) is not None:
        name, keys, *rest = numpy.random.get_state()
        state["numpy"] = [name, keys.tolist(), *rest]
    return state


def _set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Restores what :func:`_random_state` returned."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    torch.set_rng_state(_tensor(state["torch"]))
    if "cuda" in state and device.type == "cuda":
        torch.cuda.set_rng_state(_tensor(state["cuda"]), device)
    if "numpy" in state:
        import numpy

        name, keys, *rest = state["numpy"]
        numpy.random.set_state((name, numpy.array(keys, dtype=numpy.uint32), *rest))


def _text(state: torch.Tensor) -> str:
    return base64.b64encode(bytes(state.tolist())).decode()


def _tensor(text: str) -> torch.Tensor:
    return torch.tensor(list(base64.b64decode(text)), dtype=torch.uint8)
