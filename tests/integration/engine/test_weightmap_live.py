"""A live engine that was updated through a weight map answers like a fresh one, also where it packs its experts.

As a program, this module is one engine after another in one process: ``python -m
tests.integration.engine.test_weightmap_live OUT
CASE FOLDER``.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # The engine runs in the test program's own process, where its model can be reached.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}


@pytest.mark.engine
@pytest.mark.parametrize("case", ["qwen3-moe", "qwen2"])
def test_an_updated_engine_answers_like_a_fresh_one(tmp_path: Path, case: str) -> None:
    out = tmp_path / "answers.json"
    command = [sys.executable, "-m", "tests.integration.engine.test_weightmap_live", str(out), case, str(tmp_path)]
    finished = subprocess.run(
        command, cwd=ROOT, env=os.environ | ENVIRONMENT, capture_output=True, text=True, timeout=400, check=False
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    answers = json.loads(out.read_text())
    assert answers["old"] != answers["fresh"], "the versions must differ for this test to say anything"
    assert answers["updated"] == answers["fresh"]


def main(out: Path, name: str, folder: Path) -> None:
    """Asks a fresh engine of version 1, then one of version 0 before and after its update."""
    import torch
    from vllm import LLM, SamplingParams
    from vllm.distributed import cleanup_dist_env_and_memory

    import launcher.bridge.vllm.worker  # noqa: F401  lets the process use the processor's matrix tiles
    from launcher.bridge.vllm.weightmap import build_worker_map, writer
    from tests.integration.engine import weightmap_models
    from tests.integration.engine.test_weightmap_vllm import CASES

    modules = [weightmap_models.trainer(CASES[name], version) for version in (0, 1)]
    for version, module in enumerate(modules):
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.mul_(0.1)  # tame enough for answers that are not all the same
        module.save_pretrained(folder / str(version))
    sampling = SamplingParams(temperature=0, max_tokens=8, logprobs=1, ignore_eos=True, detokenize=False)

    def start(version: int) -> Any:
        return LLM(
            model=str(folder / str(version)),
            dtype="bfloat16",
            enforce_eager=True,
            quantization="launcher-plain",
            max_model_len=64,
            max_num_seqs=4,
            skip_tokenizer_init=True,
            enable_prefix_caching=False,
        )

    def ask(engine: Any) -> list[Any]:
        prompts = [{"prompt_token_ids": tokens} for tokens in ([5, 6, 7, 8], [50, 61, 7])]
        texts = [request.outputs[0] for request in engine.generate(prompts, sampling, use_tqdm=False)]
        return [[(t, logprobs[t].logprob) for t, logprobs in zip(x.token_ids, x.logprobs, strict=True)] for x in texts]

    engine = start(1)
    answers = {"fresh": ask(engine)}
    del engine
    gc.collect()
    cleanup_dist_env_and_memory()
    engine = start(0)
    answers["old"] = ask(engine)
    manifest, tensors = weightmap_models.tensors_of(CASES[name], modules[1], folder / "1")

    def update(model: torch.nn.Module) -> None:
        config = engine.llm_engine.model_config
        weight_map = build_worker_map(model, config, manifest)
        write = writer(model, config, weight_map)
        weightmap_models.receive(weight_map, write.received, tensors)
        write.commit()

    engine.apply_model(update)
    answers["updated"] = ask(engine)
    out.write_text(json.dumps(answers))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
