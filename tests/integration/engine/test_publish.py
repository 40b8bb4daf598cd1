"""Weights published into a real vLLM are the weights it then serves, with tensor parallelism and without."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]


def run_job(folder: Path, model: Path, command: list[str], *overrides: str) -> None:
    """A whole local run, with a trainer of the test's own."""
    words = ",".join(json.dumps(word) for word in ["python", "-m", *command])
    finished = subprocess.run(
        [
            sys.executable,
            "-m",
            "launcher",
            f"output_dir={folder / 'runs'}",
            f"model.path={model}",
            f"trainer.command=[{words}]",
            "trainer.workers_per_node=1",
            "bridge.timeout_s=60",
            # Engines and trainers that share two cores with another test let an agent wait for its turn.
            "lease_timeout_s=60",
            *overrides,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr


@pytest.fixture(scope="module", params=["tp1-untied", "tp2-tied-delta"])
def published(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the trainer of :mod:`tests.integration.engine.publish_program` saw, and what a fresh engine says of its
    checkpoint.

    The second one sends bfloat16 of float32 masters, and only what has changed.
    """
    folder = tmp_path_factory.mktemp(request.param)
    plain = ("qwen3", "", "1", "float32")
    architecture, tied, size, dtype = plain if request.param == "tp1-untied" else ("llama", "--tied", "2", "bfloat16")
    model = folder / "model"
    subprocess.run(
        [
            sys.executable,
            "-m",
            "launcher.trainers.grpo.tiny_model",
            str(model),
            "--architecture",
            architecture,
            *tied.split(),
        ],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    shape = [f"inference.tensor_parallel_size={size}", f"layout.gpus_per_node={size}", f"model.dtype={dtype}"]
    update = "delta" if request.param.endswith("delta") else "full"
    out, checkpoint, fresh = folder / "facts.json", folder / "checkpoint", folder / "fresh.json"
    run_job(
        folder,
        model,
        ["tests.integration.engine.publish_program", str(out), str(checkpoint)],
        f"bridge.update={update}",
        *shape,
    )
    run_job(folder, checkpoint, ["tests.integration.engine.ask_program", str(fresh)], *shape)
    return {**json.loads(out.read_text()), "fresh": json.loads(fresh.read_text())[0]}


def tokens(answers: list[dict[str, Any]]) -> list[list[int]]:
    return [answer["tokens"] for answer in answers]


def gap(left: list[dict[str, Any]], right: list[dict[str, Any]]) -> float:
    """Largest difference between log-probabilities of the same tokens."""
    return max(
        abs(a - b)
        for one, two in zip(left, right, strict=True)
        for a, b in zip(one["logprobs"], two["logprobs"], strict=True)
    )


@pytest.mark.engine
@pytest.mark.timeout(900)
class TestPublish:
    def test_an_update_equals_a_fresh_engine_on_the_saved_checkpoint(self, published: dict[str, Any]) -> None:
        assert tokens(published["v2"]) == tokens(published["fresh"])
        assert gap(published["v2"], published["fresh"]) <= 1e-3

    def test_an_update_changes_the_answers_and_the_way_back_restores_them(self, published: dict[str, Any]) -> None:
        assert gap(published["unpublished"], published["v1"]) <= 1e-3
        assert tokens(published["v2"]) != tokens(published["v1"])
        assert tokens(published["v3"]) == tokens(published["v1"])
        assert gap(published["v3"], published["v1"]) <= 1e-3

    @pytest.mark.seed("D15")
    def test_every_answer_names_its_version(self, published: dict[str, Any]) -> None:
        assert {answer["version"] for answer in published["unpublished"]} == {None}
        assert {answer["version"] for answer in published["v2"]} == {"2"}
        assert published["info_2"][0]["version"] == 2

    @pytest.mark.seed("D5", "D16")
    def test_no_worker_gets_more_than_it_needs(self, published: dict[str, Any]) -> None:
        # One worker needs everything once; of two, each its half, and both what is not split (norms) and alignment.
        assert published["bytes_expected"] <= published["bytes_2"] <= 1.1 * published["bytes_expected"]

    def test_a_single_parameter_leaves_the_others_alone(self, published: dict[str, Any]) -> None:
        assert tokens(published["v4_single"]) == tokens(published["v5_whole"])
        assert gap(published["v4_single"], published["v5_whole"]) <= 1e-3
        assert gap(published["v4_single"], published["v3"]) > 0

    def test_a_stale_version_and_an_unknown_name_are_refused(self, published: dict[str, Any]) -> None:
        assert "version 2 is not newer than 2" in published["stale"]
        assert "no.such.weight" in published["unknown_name"]

    @pytest.mark.seed("D8")
    def test_a_tensor_that_no_worker_uses_is_refused_before_a_byte_moves(self, published: dict[str, Any]) -> None:
        assert "launcher_unknown" in published["unknown_to_engine"]
        assert published["info_refused"][0]["version"] == 5
        assert published["info_refused"][0]["state"] == "serving"
        assert tokens(published["v7"]) == tokens(published["v5_whole"])
        assert published["info_7"][0]["state"] == "serving"
        assert published["info_7"][0]["paused"] is False

    def test_nothing_but_health_answers_without_a_key(self, published: dict[str, Any]) -> None:
        assert published["open"].pop("/health") == 200
        assert set(published["open"].values()) == {401}

    def test_the_api_key_opens_neither_the_bridge_nor_development_endpoints(self, published: dict[str, Any]) -> None:
        bridge = {path: status for path, status in published["with_api_key"].items() if path.startswith("/bridge")}
        assert set(bridge.values()) == {401}
        others = {path: status for path, status in published["with_api_key"].items() if path not in bridge}
        assert set(others.values()) == {404}

    @pytest.mark.seed("D33")
    def test_a_paused_engine_keeps_requests_and_answers_them_after_it_resumed(self, published: dict[str, Any]) -> None:
        facts = published["pause"]
        assert facts["pause"] == [200, {"paused": True}]
        assert facts["while_paused"] == [200, {"paused": True}]
        assert not facts["finished_early"]
        assert facts["resume"] == [200, {"paused": False}]
        assert tokens(facts["answers"]) == tokens(published["v7"])

    @pytest.mark.seed("D12")
    def test_engines_go_on_after_the_trainer_has_left(self, published: dict[str, Any]) -> None:
        assert tokens(published["after_close"]) == tokens(published["v7"])

    @pytest.mark.seed("D22", "D23")
    def test_the_earlier_names_do_the_same(self, published: dict[str, Any]) -> None:
        facts = published["compat"]
        assert facts["begin"] == 7
        assert facts["end"] == 10
        assert facts["served"] == [10]
        assert "initialize" in facts["after_cleanup"]
        assert tokens(published["after_compat"]) == tokens(published["v7"])
        assert gap(published["after_compat"], published["v7"]) <= 1e-3
