"""A hundred versions are published into a real vLLM while requests never cease: none is lost, none is of a mix."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.engine.answers import check_answers, spanning, unsure
from tests.integration.engine.test_publish import ROOT, run_job

UPDATES = 100


@pytest.mark.engine
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("architecture", "size", "dtype", "ranks"), [("qwen3", 1, "float32", 1), ("llama", 2, "bfloat16", 2)]
)
@pytest.mark.seed("D14", "D21")
def test_every_token_is_of_the_version_that_its_answer_declares(
    tmp_path: Path, architecture: str, size: int, dtype: str, ranks: int
) -> None:
    model, out = tmp_path / "model", tmp_path / "facts.json"
    subprocess.run(
        [sys.executable, "-m", "launcher.trainers.grpo.tiny_model", str(model), "--architecture", architecture],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    shape = [f"inference.tensor_parallel_size={size}", f"layout.gpus_per_node={size}", f"model.dtype={dtype}"]
    shape.append(f"trainer.workers_per_node={ranks}")
    run_job(tmp_path, model, ["tests.integration.engine.load_program", str(out), str(UPDATES)], *shape)
    facts = json.loads(out.read_text())
    assert facts["failures"] == []
    # What is reported is the time until the engine serves the version, not until it has been told.
    assert all(update > pause > 0 for update, pause in zip(facts["seconds"], facts["pauses"], strict=True))
    declared = check_answers(facts["answers"])
    print(
        f"{len(facts['answers'])} answers, {spanning(declared)} choices of more than one version,"
        f" {unsure(facts['answers'])} that could not tell;"
        f" update {statistics.median(facts['seconds']):.3f} s, pause {1000 * statistics.median(facts['pauses']):.0f} ms"
    )
    met = {version for versions in declared for version in versions}
    assert len(met) >= UPDATES / 2, "the requests must have met many versions for this to say anything"
    assert spanning(declared) >= UPDATES / 10
    assert unsure(facts["answers"]) < len(facts["answers"]) / 10
