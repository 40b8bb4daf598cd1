"""The policy: a Hugging Face causal language model with float32 masters, sharded by FSDP2 over several ranks."""

from __future__ import annotations

import os
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from launcher.trainers.grpo.hf import load_causal_lm, new_model


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerRank:
    """Which trainer rank this process is, and where it computes."""

    rank: int
    local_rank: int
    world_size: int
    device: torch.device

    @classmethod
    def from_environment(cls, device_type: str) -> TrainerRank:
        """Reads torchrun's variables; a process without them is a world of one."""
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        return cls(
            rank=int(os.environ.get("RANK", "0")),
            local_rank=local_rank,
            world_size=int(os.environ.get("WORLD_SIZE", "1")),
            device=torch.device("cuda", local_rank) if device_type == "cuda" else torch.device("cpu"),
        )

    @property
    def is_main(self) -> bool:
        """Whether this rank speaks for all of them."""
        return self.rank == 0

    def join(self) -> None:
        """Joins the process group of all trainer ranks; nothing to join in a world of one."""
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        if self.world_size > 1:
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo")

    def leave(self) -> None:
        """Leaves the process group, together: a rank that is gone early resets the others' connections."""
        if self.world_size > 1:
            self.reduce([0.0])
            dist.destroy_process_group()

    def end(self) -> NoReturn:
        """Ends the process with exit code 0, now that everything is done.

        A sharded model keeps its group alive until the interpreter's own end, where gloo's threads may still run and
        make the C++ runtime abort (``terminate called without an active exception``), now and then.
        """
        self.leave()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)

    def reduce(self, values: list[float], op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> list[float]:
        """Combines each value over all ranks."""
        if self.world_size == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor, op=op)
        reduced: list[float] = tensor.tolist()
        return reduced


def load_model(path: Path, worker: TrainerRank) -> torch.nn.Module:
    """The model in ``path``, float32, on the worker's device; every rank of a larger world holds one shard."""
    model = load_causal_lm(path, torch.float32)
    model.train()
    return model.to(worker.device) if worker.world_size == 1 else shard(model, worker)


def shard(model: torch.nn.Module, worker: TrainerRank) -> torch.nn.Module:
    """Shards each block and then the rest with FSDP2; blocks are what the model itself calls indivisible."""
    mesh = init_device_mesh(worker.device.type, (worker.world_size,))
    blocks = set(getattr(model, "_no_split_modules", None) or ())
    for module in model.modules():
        if type(module).__name__ in blocks:
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def compute_dtype(worker: TrainerRank, dtype: str) -> AbstractContextManager[Any]:
    """Where forward passes run: in the wire type's precision on a GPU, in float32 on a CPU."""
    if worker.device.type == "cuda" and dtype != "float32":
        return torch.autocast("cuda", dtype=getattr(torch, dtype))
    return nullcontext()


def token_logits(model: torch.nn.Module, sequences: torch.Tensor) -> torch.Tensor:
    """Logits, in float32, of every token but the first given those before it.

    Padding must be on the right, where a causal model cannot see it from the tokens that count.

    Args:
        sequences: sequences x length, token ids.

    Returns:
        sequences x (length - 1) x vocabulary.
    """
    logits: torch.Tensor = model(input_ids=sequences, use_cache=False).logits
    return logits[:, :-1].float()


def token_logprobs(logits: torch.Tensor, sequences: torch.Tensor, *, temperature: float = 1.0) -> torch.Tensor:
    """Log-probability of every token but the first: sequences x (length - 1)."""
    flat = F.cross_entropy((logits / temperature).flatten(0, 1), sequences[:, 1:].flatten(), reduction="none")
    return -flat.view(len(sequences), -1)


def wire_copy(model: torch.nn.Module, worker: TrainerRank, dtype: str) -> Any:
    """The whole current model in the wire type on rank 0's CPU, as a Hugging Face model; None on other ranks.

    Every rank calls it. The copy is built new and then filled, because casting a model also casts buffers that must
    stay float32, such as the rotary frequencies.
    """
    if worker.world_size == 1:
        state = model.state_dict()
    else:
        state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if not worker.is_main:
        return None
    copy = new_model(model.config, getattr(torch, dtype))
    copy.load_state_dict(state)
    return copy.eval()
