"""The results of the matrix: kept as JSON lines, which later runs add to, and shown as a table."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from launcher.common.text import aligned
from launcher.testing.chaos.cases import CASES, Moment
from launcher.testing.chaos.judge import CaseResult

HEADER = ("case", "moment", "followed", "noticed", "next step", "ended", "attempts", "left", "answers", "as it should")
RESULTS, TABLE = "faults.jsonl", "faults.txt"


def table(results: Iterable[CaseResult]) -> str:
    """One line for each fault, in the order of the cases."""
    order = {case.name: index for index, case in enumerate(CASES)}
    moments = list(Moment)
    ordered = sorted(results, key=lambda result: (order.get(result.case, -1), moments.index(Moment(result.moment))))
    return "\n".join(aligned([HEADER, *map(_row, ordered)], right=(3, 4, 6, 7, 8)))


def load(folder: Path) -> dict[tuple[str, str], CaseResult]:
    """The last result of each scenario."""
    path = folder / RESULTS
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    results = [CaseResult.from_json(json.loads(line)) for line in lines]
    return {(result.case, result.moment): result for result in results}


def add(result: CaseResult, folder: Path) -> None:
    """Keeps one more result, and the table as it is now."""
    with (folder / RESULTS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(result.to_json()) + "\n")
    (folder / TABLE).write_text(table(load(folder).values()) + "\n", encoding="utf-8")


def _row(result: CaseResult) -> Sequence[str]:
    return (
        result.case,
        result.moment,
        result.followed,
        _seconds(result.next_state_s),
        _seconds(result.back_s),
        result.outcome,
        str(result.attempts),
        str(len(result.left)),
        f"{result.answers}" if not result.wrong else f"{len(result.wrong)} wrong",
        "; ".join(result.surprises) or "yes",
    )


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} s"
