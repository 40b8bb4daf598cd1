"""Engines after two updates are the same as fresh ones, or refuse before anything is changed; a part of the table.

The models here are those that were once wrong, or refused without need. Two more of the table are tried each day.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from launcher.cli.models import TABLE

ROOT = Path(__file__).parents[3]
TRIED = ("phi", "mixtral", "gemma2", "deepseek-v2", "mamba2")
EQUAL = [row["name"] for row in json.loads(TABLE.read_text(encoding="utf-8"))["rows"] if row["result"] == "equal"]
TODAY = [EQUAL[(2 * date.today().toordinal() + i) % len(EQUAL)] for i in (0, 1)]


def run(tmp_path: Path, *arguments: str) -> dict[str, dict[str, Any]]:
    """The rows of one run of the suite, by name."""
    out = tmp_path / "table.json"
    command = [sys.executable, "-m", "launcher.testing.models", *arguments, "--out", str(out)]
    finished = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False)
    assert out.exists(), finished.stdout + finished.stderr
    return {row["name"]: row for row in json.loads(out.read_text(encoding="utf-8"))["rows"]}


@pytest.mark.engine
def test_models_that_were_wrong_once_are_equal_to_fresh_engines_or_refused(tmp_path: Path) -> None:
    rows = run(tmp_path, *dict.fromkeys([*TRIED, *TODAY]))
    # Its loader registers the output bias anew: joining used to put uninitialised memory in its place.
    assert rows["phi"]["result"] == "refused" and "replaces `lm_head.bias`" in rows["phi"]["words"]
    results = {name: (row["result"], row["words"]) for name, row in rows.items() if name != "phi"}
    assert results == dict.fromkeys(results, ("equal", ""))


@pytest.mark.engine
def test_ranks_that_zero_what_another_rank_adds_are_equal_to_fresh_ones(tmp_path: Path) -> None:
    row = run(tmp_path, "gpt-oss", "--tp", "2")["gpt-oss"]
    assert (row["result"], row["words"]) == ("equal", "")


@pytest.mark.engine
def test_a_model_of_ones_own_is_made_small_and_tried(tmp_path: Path) -> None:
    config = {
        "model_type": "qwen2",
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    }
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    row = run(tmp_path, str(tmp_path))[str(tmp_path)]
    assert (row["result"], row["words"]) == ("equal", "")
