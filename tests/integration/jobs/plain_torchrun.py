"""A torchrun program that knows nothing of launchers: ``torchrun tests/integration/jobs/plain_torchrun.py OUTPUT``."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist


def main() -> None:
    """Adds up the ranks, and writes what every rank saw."""
    dist.init_process_group("gloo")
    total = torch.tensor([dist.get_rank()])
    dist.all_reduce(total)
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
    seen = {"sum": int(total), "host": os.uname().nodename, **{name: os.environ[name] for name in names}}
    everybody: list[dict[str, object] | None] = [None] * dist.get_world_size()
    dist.all_gather_object(everybody, seen)
    if dist.get_rank() == 0:
        Path(sys.argv[1]).write_text(json.dumps(everybody))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
