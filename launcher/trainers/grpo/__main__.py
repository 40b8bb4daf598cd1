"""One rank of the reference trainer, started by the run's agent with torchrun's environment.

python -m launcher.trainers.grpo
"""

from __future__ import annotations

import os
from pathlib import Path

from launcher.common.env import LAUNCHER_RUN_DIR
from launcher.config import load_run_config
from launcher.control import emit as events


def main() -> None:
    """Reads the run's frozen configuration and trains."""
    run_dir = Path(os.environ[LAUNCHER_RUN_DIR])
    config = load_run_config(run_dir)
    if os.environ.get("RANK", "0") == "0":
        events.emit("phase", phase="imports", who="trainer-0000", state="begin")
    # Imported only now, so that the seconds it takes are seen as a phase.
    from torch.distributed.elastic.multiprocessing.errors import record

    from launcher.trainers.grpo.loop import train

    if os.environ.get("RANK", "0") == "0":
        events.emit("phase", phase="imports", who="trainer-0000", state="end")
    # Writes an exception to TORCHELASTIC_ERROR_FILE too, where the agent finds the first failure's cause.
    record(train)(config, run_dir)


if __name__ == "__main__":
    main()
