"""The tiny model and its tokenizer, log-probabilities, and the final check."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from launcher.trainers.grpo.hf import load_causal_lm, load_tokenizer
from launcher.trainers.grpo.loop import compare
from launcher.trainers.grpo.model import TrainerRank, token_logits, token_logprobs, wire_copy
from launcher.trainers.grpo.rollout import Completion
from launcher.trainers.grpo.tiny_model import CHARACTERS, TinyModel, make_tiny_model
from launcher.trainers.grpo.update import make_batch

ALONE = TrainerRank(rank=0, local_rank=0, world_size=1, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


def test_tokenizer_round_trip(tiny: Path) -> None:
    tokenizer = load_tokenizer(tiny)
    ids = tokenizer(CHARACTERS)["input_ids"]
    assert len(set(ids)) == len(ids) == len(CHARACTERS)
    assert tokenizer.decode(ids) == CHARACTERS
    assert tokenizer.decode([*ids, tokenizer.eos_token_id]) == CHARACTERS + "<eos>"


@pytest.mark.parametrize(("architecture", "tied"), [("qwen3", False), ("qwen3", True), ("llama", False)])
def test_models_load_and_are_told_apart_by_seed(tmp_path: Path, architecture: str, tied: bool) -> None:
    paths = [
        make_tiny_model(tmp_path / name, TinyModel(architecture=architecture, tied=tied, seed=seed))
        for name, seed in [("a", 1), ("b", 1), ("c", 2)]
    ]
    blobs = [(path / "model.safetensors").read_bytes() for path in paths]
    assert blobs[0] == blobs[1] != blobs[2]
    model = load_causal_lm(paths[0], torch.float32)
    config: Any = model.config
    assert (config.model_type, config.tie_word_embeddings) == (architecture, tied)
    assert config.num_attention_heads > config.num_key_value_heads > 1
    assert not [path for path in tmp_path.iterdir() if path.name not in "abc"], "the staging directory was left behind"


def test_a_directory_in_use_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    with pytest.raises(FileExistsError, match="is not empty"):
        make_tiny_model(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_batch_puts_log_probabilities_where_the_model_has_them(tiny: Path) -> None:
    model = load_causal_lm(tiny, torch.float32)
    prompts = [[3, 13, 4, 16], [3, 4, 13, 5, 16]]
    groups = [[answer(5, 1), answer(6, 7, 8)], [answer(9), answer(10, 1)]]
    batch = make_batch(prompts, groups, [[1.0, 0.0], [0.0, 0.0]], pad=0, device=torch.device("cpu"))
    logprobs = token_logprobs(token_logits(model, batch.sequences), batch.sequences)
    row = 0
    for prompt, group in zip(prompts, groups, strict=True):
        for completion in group:
            # The reference: one unpadded sequence, log-softmax over the vocabulary, the sampled tokens picked by hand.
            ids = torch.tensor([[*prompt, *completion.token_ids]])
            expected = model(ids).logits[0].log_softmax(-1)
            positions = range(len(prompt) - 1, ids.shape[1] - 1)
            wanted = torch.stack([expected[position, ids[0, position + 1]] for position in positions])
            mask = batch.mask[row].bool()
            assert torch.allclose(logprobs[row][mask], wanted, atol=1e-5)
            assert batch.engine_logprobs[row][mask].tolist() == pytest.approx(completion.logprobs)
            row += 1
    assert batch.advantages.tolist() == pytest.approx([1.0, -1.0, 0.0, 0.0], rel=1e-3)
    assert [len(part.sequences) for part in batch.split(3)] == [3, 1]


def test_final_check_accepts_rounding_and_sees_a_small_change(tiny: Path) -> None:
    model = load_causal_lm(tiny, torch.float32)
    prompts = [[3, 13, 4, 16], [5, 13, 6, 16]]
    served = wire_copy(model, ALONE, "bfloat16")
    answers = [greedy(served, prompt) for prompt in prompts]
    same = compare(served, prompts, answers)
    assert (same.tokens, same.equal, same.gap_max) == (6, 6, 0.0)
    assert same.within(1e-6)
    with torch.no_grad():
        model.get_output_embeddings().weight[7] += 0.5  # type: ignore[operator]
    changed = compare(wire_copy(model, ALONE, "bfloat16"), prompts, answers)
    assert not changed.within(0.25)


def test_a_greedy_token_may_differ_only_at_a_tie(tiny: Path) -> None:
    model = load_causal_lm(tiny, torch.float32)
    honest = greedy(model, [3, 13, 4, 16])
    worst = min(honest.top[0], key=lambda token: honest.top[0][token])
    other = Completion(token_ids=(worst,), logprobs=(honest.top[0][worst],), finished=False, top=honest.top[:1])
    result = compare(model, [[3, 13, 4, 16]], [other])
    assert (result.tokens, result.equal, round(result.difference_max, 4)) == (1, 0, 0.0)
    assert result.gap_max == pytest.approx(max(honest.top[0].values()) - honest.top[0][worst], abs=1e-5)
    assert not result.within(result.gap_max / 2)


def answer(*token_ids: int) -> Completion:
    logprobs = tuple(-0.1 * token for token in token_ids)
    return Completion(token_ids=token_ids, logprobs=logprobs, finished=token_ids[-1] == 1)


def greedy(model: torch.nn.Module, prompt: list[int]) -> Completion:
    """What an engine with these weights would answer, three tokens long."""
    tokens: list[int] = []
    top: list[dict[int, float]] = []
    for _ in range(3):
        with torch.no_grad():
            logprobs = model(torch.tensor([[*prompt, *tokens]])).logits[0, -1].float().log_softmax(-1)
        values, ids = logprobs.topk(5)
        top.append(dict(zip(ids.tolist(), values.tolist(), strict=True)))
        tokens.append(int(ids[0]))
    logprobs_of_tokens = tuple(position[token] for position, token in zip(top, tokens, strict=True))
    return Completion(token_ids=tuple(tokens), logprobs=logprobs_of_tokens, finished=False, top=tuple(top))
