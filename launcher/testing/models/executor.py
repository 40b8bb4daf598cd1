"""vLLM with one rank in each of several processes that were forked for it: nothing has to be imported again."""

from __future__ import annotations

import os
from typing import ClassVar

from vllm.v1.executor.uniproc_executor import ExecutorWithExternalLauncher


class ForkedRank(ExecutorWithExternalLauncher):
    """vLLM's executor for ranks that are started from outside."""

    meeting: ClassVar[str]
    """The ``file://`` address at which the ranks of one engine meet. vLLM names shared memory after it."""

    def _distributed_args(self) -> tuple[str, int, int]:
        return self.meeting, int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
