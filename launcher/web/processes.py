"""The status of each process of a layout, as one letter: what colours the GPUs of the page."""

from __future__ import annotations

from launcher.events.run_state import ProcessStatus, RunState
from launcher.layout.model import Layout

LETTERS = {
    ProcessStatus.WAITING: "w",
    ProcessStatus.STARTING: "s",
    ProcessStatus.RUNNING: "r",
    ProcessStatus.ENDED: "e",
    ProcessStatus.FAILED: "f",
    ProcessStatus.VICTIM: "v",
    ProcessStatus.LOST: "l",
}
"""One letter each: a page of thousands of processes gets one text a second."""


def process_letters(layout: Layout, state: RunState) -> str:
    """A letter for every process, in the order of the layout."""
    lost = set(state.node_losses) - set(state.spares)
    letters = []
    for node in layout.nodes:
        missing = ProcessStatus.LOST if node.node_rank in lost else ProcessStatus.WAITING
        if missing is ProcessStatus.WAITING and state.outcome is not None:
            missing = ProcessStatus.ENDED
        for process in node.processes:
            record = state.processes.get(process.name)
            letters.append(LETTERS[missing if record is None else record.status])
    return "".join(letters)
