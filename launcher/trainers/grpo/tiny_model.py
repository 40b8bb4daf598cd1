"""Makes a tiny random causal language model with its tokenizer, for runs without a downloaded one.

python -m launcher.trainers.grpo.tiny_model DIR [--seed N] [--architecture qwen3|llama] [--tied]
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from launcher.trainers.grpo.hf import new_config, new_model

PAD, EOS, UNK = "<pad>", "<eos>", "<unk>"
# Few tokens, so that a random policy now and then says something right: that is all a policy gradient can start from.
CHARACTERS = "0123456789+-*= ?"

# More than the usual 0.02: a few narrow layers otherwise hardly tell one prompt from another at first.
INITIALIZER_RANGE = 0.03

ARCHITECTURES = ("qwen3", "llama")


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyModel:
    """What to make. Every size is one that vLLM's CPU attention takes, and splits over 2 tensor-parallel ranks."""

    architecture: str = "qwen3"
    """One of :data:`ARCHITECTURES`."""

    tied: bool = False
    """The output projection is the embedding."""

    layers: int = 2
    hidden_size: int = 128
    intermediate_size: int = 256
    attention_heads: int = 4
    key_value_heads: int = 2
    head_dim: int = 32
    max_length: int = 1024
    """Longest sequence in tokens."""

    seed: int = 0
    """Seed of the weights; the same seed gives the same bytes."""


def make_tiny_model(directory: Path, spec: TinyModel | None = None, *, dtype: torch.dtype = torch.float32) -> Path:
    """Writes configuration, weights (safetensors) and tokenizer to ``directory``, all of it or nothing.

    Raises:
        FileExistsError: ``directory`` exists and holds something.
    """
    directory = directory.absolute()
    if directory.exists() and any(directory.iterdir()):
        raise FileExistsError(f"{directory} is not empty. HINT: name a new directory.")
    directory.parent.mkdir(parents=True, exist_ok=True)
    # A reader sees the whole directory or none: it is renamed when it is complete.
    staging = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        tokenizer = make_tokenizer()
        tokenizer.save_pretrained(staging)
        build(spec or TinyModel(), tokenizer, dtype).save_pretrained(staging)
        staging.chmod(0o755)  # mkdtemp makes it private; engines may run as another user's service
        staging.replace(directory)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return directory


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of one token per character of :data:`CHARACTERS`, with ``<pad>``, ``<eos>`` and ``<unk>``."""
    vocabulary = {token: index for index, token in enumerate([PAD, EOS, UNK, *CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS, unk_token=UNK
    )


def build(spec: TinyModel, tokenizer: PreTrainedTokenizerFast, dtype: torch.dtype) -> Any:
    """The random model of ``spec``; the global random state is left as it was."""
    config = new_config(
        spec.architecture,
        vocab_size=len(tokenizer),
        hidden_size=spec.hidden_size,
        intermediate_size=spec.intermediate_size,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.attention_heads,
        num_key_value_heads=spec.key_value_heads,
        head_dim=spec.head_dim,
        max_position_embeddings=spec.max_length,
        tie_word_embeddings=spec.tied,
        initializer_range=INITIALIZER_RANGE,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        return new_model(config, dtype)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m launcher.trainers.grpo.tiny_model", description=__doc__)
    parser.add_argument("directory", type=Path, metavar="DIR")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--architecture", choices=ARCHITECTURES, default=ARCHITECTURES[0])
    parser.add_argument("--tied", action="store_true")
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="float32")
    options = parser.parse_args(argv)
    spec = TinyModel(architecture=options.architecture, tied=options.tied, seed=options.seed)
    path = make_tiny_model(options.directory, spec, dtype=getattr(torch, options.dtype))
    print(f"made {spec.architecture} with seed {spec.seed} in {path}")


if __name__ == "__main__":
    main()
