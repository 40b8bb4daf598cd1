"""A small trainer that checkpoints: ``python -m tests.unit.checkpoint_program MODE DIRECTORY ...``, one rank of it.

``exact``: writes the losses of an uninterrupted run, and of one that ends half way. ``resume``: those of the rest.
``crash``: ends by SIGKILL at every single step of a save, and looks at what the next process finds.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from launcher.checkpoint import Checkpoints
from launcher.trainers.grpo.model import TrainerRank

STEPS = 6
HALF = 3


class Model(nn.Module):
    """An embedding that is also the head, a block with dropout, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(16, 8)
        self.up = nn.Linear(8, 32)
        self.dropout = nn.Dropout(0.3)
        self.down = nn.Linear(32, 8)
        self.head = nn.Linear(8, 16, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        assert isinstance(self.seen, torch.Tensor)
        self.seen += 1
        hidden = self.embedding(tokens)
        hidden = hidden + self.down(self.dropout(torch.relu(self.up(hidden))))
        logits: torch.Tensor = self.head(hidden)
        return logits * (1 + self.seen / 100)


class Words:
    """Data with a position: a shuffled list, and where in it."""

    def __init__(self) -> None:
        self.position = 0

    def take(self) -> torch.Tensor:
        self.position += 1
        return torch.tensor([[(self.position * 5 + k) % 16 for k in range(8)], random.choices(range(16), k=8)])

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.position = state_dict["position"]


class Run:
    """One trainer: what it is made of, and its steps."""

    def __init__(self, kind: str, directory: Path, *, seed: int) -> None:
        random.seed(seed)
        torch.manual_seed(seed)
        self.model: nn.Module = Model()
        if kind == "fsdp":
            mesh = init_device_mesh("cpu", (2,))
            fully_shard(self.model.up, mesh=mesh)
            fully_shard(self.model, mesh=mesh)
        elif kind == "tensor parallel":
            mesh = init_device_mesh("cpu", (2,))
            parallelize_module(self.model, mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.05)
        self.data = Words()
        self.checkpoints = Checkpoints(directory, model=self.model, optimizer=self.optimizer, data=self.data, keep=2)

    def step(self) -> str:
        """The step's loss, to the last bit."""
        tokens = self.data.take()
        loss = nn.functional.cross_entropy(self.model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return float(loss.detach()).hex()


def weights(model: nn.Module) -> list[str]:
    """Digests of the whole parameters; every rank calls it."""
    found = []
    for parameter in model.parameters():
        whole = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
        found.append(hashlib.sha256(whole.detach().numpy().tobytes()).hexdigest())
    return found


def exact(kind: str, directory: Path, *, resume: bool) -> dict[str, list[str]]:
    """Losses by the run that gave them."""
    if resume:
        # Another seed: nothing may be right by chance.
        run = Run(kind, directory, seed=99)
        start = run.checkpoints.restore()
        assert start == HALF, start
        return {"rest": [run.step() for _ in range(start, STEPS)]}
    whole = Run(kind, directory, seed=1)
    found = {"whole": [whole.step() for _ in range(STEPS)]}
    half = Run(kind, directory, seed=1)
    found["half"] = [half.step() for _ in range(HALF)]
    half.checkpoints.save(HALF)
    found["weights"] = weights(half.model)
    found["after saving"] = [half.step() for _ in range(HALF, STEPS)]
    return found


def crash(directory: Path) -> dict[str, list[int]]:
    """What was restored after a death at each step of the third save, and whether the run went on as it should."""
    # Always in a child: a fork must not inherit what torch keeps between a backward pass and the next.
    assert forked(lambda: reference(directory / "losses")) == 0
    losses = json.loads((directory / "losses").read_text())
    places: list[Path] = []
    finished = False
    while not finished:
        places.append(directory / str(len(places)))
        status = forked(lambda: save_and_die(places[-1], len(places) - 1))
        finished = status == 0
        assert finished or os.WTERMSIG(status) == signal.SIGKILL, status
    restored = directory / "restored"
    assert forked(lambda: restored.write_text(json.dumps([restore_and_go_on(place, losses) for place in places]))) == 0
    return {"restored": json.loads(restored.read_text())}


def reference(file: Path) -> None:
    """The losses of a run that nothing happened to."""
    run = Run("plain", file.with_name("reference"), seed=1)
    file.write_text(json.dumps([run.step() for _ in range(STEPS)]))


def save_and_die(place: Path, count: int) -> None:
    """Three steps, a save after each; SIGKILL just before the ``count``-th access to a file in the third save."""
    run = Run("plain", place, seed=1)
    left = count
    armed = False

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if armed and event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"):
            if str(place) in str(arguments[0]) and left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= str(place) in str(arguments[0])

    sys.addaudithook(hook)
    for step in range(1, HALF + 1):
        run.step()
        armed = step == HALF
        run.checkpoints.save(step)


def restore_and_go_on(place: Path, losses: list[str]) -> int:
    """The step that it found. Saving works again, too, and leaves nothing behind but what is kept."""
    run = Run("plain", place, seed=99)
    start = run.checkpoints.restore()
    assert [run.step() for _ in range(start, STEPS)] == losses[start:]
    run.checkpoints.save(STEPS)
    names = {path.name for path in place.iterdir()}
    assert len(names) == 2 and f"step-{STEPS:010d}" in names, names
    return start


def forked(action: Callable[[], object]) -> int:
    """Runs it in a process of its own; its wait status."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            action()
            code = 0
        finally:
            sys.stderr.flush()
            os._exit(code)
    return os.waitpid(pid, 0)[1]


def main() -> None:
    mode, directory = sys.argv[1], Path(sys.argv[2])
    if mode == "crash":
        print(json.dumps(crash(directory)))
        return
    worker = TrainerRank.from_environment("cpu")
    worker.join()
    found = {kind: exact(kind, directory / kind, resume=mode == "resume") for kind in sys.argv[3:]}
    (directory / f"{mode}-{worker.rank}.json").write_text(json.dumps(found))
    worker.end()


if __name__ == "__main__":
    main()
