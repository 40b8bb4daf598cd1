"""What the runs of a sweep are compared by: a number of the trainer's ``step`` events, as one value for a run."""

from __future__ import annotations

from dataclasses import dataclass

WINDOW = 5
"""Steps that a value is the mean of: one step's reward is a throw of dice."""

REDUCTIONS = ("max", "min", "last", "mean")
DEFAULT_REDUCTION = "max"


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A number of the ``step`` events, and how the steps of a run become one value."""

    name: str
    reduction: str = DEFAULT_REDUCTION

    @classmethod
    def parse(cls, text: str) -> Metric:
        """``reward``, ``reward.last``, ``loss.min``. Whatever follows the last dot is checked by the validation."""
        name, dot, reduction = text.rpartition(".")
        return cls(name=name, reduction=reduction) if dot else cls(name=text)

    @property
    def lower_is_better(self) -> bool:
        """For the order of a table."""
        return self.reduction == "min"

    def value(self, curve: list[tuple[int, float]]) -> float | None:
        """One number for a run; ``max``, ``min``, ``last`` are means of :data:`WINDOW` steps, fewer in short runs."""
        values = [value for _, value in curve]
        if not values:
            return None
        if self.reduction == "mean":
            return sum(values) / len(values)
        window = min(WINDOW, max(len(values) // 2, 1))
        means = [sum(values[i : i + window]) / window for i in range(len(values) - window + 1)]
        return {"max": max(means), "min": min(means)}.get(self.reduction, means[-1])

    def __str__(self) -> str:
        return f"{self.name}.{self.reduction}"
