"""What one engine serves: the version of its weights, and of each adapter that the bridge brought."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from launcher.bridge.settings import Mode
from launcher.bridge.vllm.spans import VersionSpans

ORIGIN = "launcher-bridge"
"""Stands where vLLM wants an adapter's directory; it is never read, as workers keep the adapter for good."""


@dataclass(slots=True, kw_only=True)
class Served:
    """One thing that has versions of its own."""

    adapter: str | None = None
    """Name of the adapter; None for the engine's weights."""

    lora_id: int | None = None
    """vLLM's number of the adapter."""

    version: int | None = None
    committed: tuple[int, int] | None = None
    """The trainers' incarnation and the version, of the last commit."""

    preparing: int | None = None
    mode: Mode = Mode.SHADOW
    updates: int = 0
    spans: VersionSpans = field(default_factory=VersionSpans)

    @property
    def about(self) -> dict[str, Any]:
        """What a worker must be told to know which thing is meant."""
        return {} if self.adapter is None else {"adapter": self.adapter, "lora_id": self.lora_id}

    def offer(self, models: Any) -> None:
        """Has vLLM answer requests whose ``model`` is the adapter's name.

        Args:
            models: vLLM's list of models (``app.state.openai_serving_models``).
        """
        from vllm.lora.request import LoRARequest

        assert self.adapter is not None and self.lora_id is not None
        models.lora_requests.setdefault(
            self.adapter, LoRARequest(lora_name=self.adapter, lora_int_id=self.lora_id, lora_path=ORIGIN)
        )
