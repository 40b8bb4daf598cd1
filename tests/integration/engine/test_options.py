"""A vLLM that is started by hand with options under which an update would be wrong ends before it answers anybody."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.trainers.grpo.tiny_model import make_tiny_model
from tests.integration.engine.vllm_server import serving


@pytest.mark.engine
def test_several_data_parallel_engines_behind_one_port(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "model")
    with (
        pytest.raises(AssertionError, match="This engine is 2 data-parallel ones behind one port"),
        serving(model, tmp_path, ["--data-parallel-size", "2"]),
    ):
        pass
