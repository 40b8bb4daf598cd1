"""One case in one process (or one process per tensor-parallel rank): a fresh engine, and one that is updated twice."""

from __future__ import annotations

import gc
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from launcher.bridge.plan import Engine, Location, Receiver, TensorSpec, place, reshard
from launcher.bridge.plan.sharding import replicated
from launcher.bridge.settings import Mode
from launcher.bridge.trainer.description import union
from launcher.bridge.trainer.module_state import description, weights
from launcher.bridge.weightmap.state import Held, different, snapshot
from launcher.common.errors import BridgeError
from launcher.testing.models.architectures import Architecture

PROMPTS = ([5, 6, 7, 8], [50, 61, 7], [9, 31, 12, 44, 3, 17])
TOKENS = 8
VERSIONS = 3
KV_BYTES = 64 << 20

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCase:
    """One model on one engine."""

    architecture: Architecture
    tp: int = 1
    """Tensor-parallel size."""

    dtype: str = "bfloat16"
    """Of the engine."""

    trainer_dtype: str = "float32"
    """Of the trainer and of the checkpoints."""

    def row(self) -> dict[str, Any]:
        """What tells it from others, for a table."""
        return {"tp": self.tp, "dtype": self.dtype, "trainer_dtype": self.trainer_dtype}


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What one case came to."""

    result: str
    """``equal``; ``refused``: before anything was changed; ``wrong``; ``error``: there was no engine to update."""

    words: str = ""
    """The refusal, the error, or what differs."""

    methods: dict[str, int] = field(default_factory=dict)
    """How many parameters are loaded in which way."""

    seconds: float = 0.0


class JoiningChanged(Exception):
    """An engine is not what it was before it was asked how weights go into it."""


def check(case: ModelCase, folder: Path) -> Outcome:
    """Runs a case. With several ranks each calls it, with the environment that torchrun would set.

    Args:
        case: what to try.
        folder: for the checkpoints of this rank, in one that all ranks share.
    """
    begin = time.monotonic()
    try:
        outcome = _check(case, folder)
    except JoiningChanged as error:
        outcome = Outcome(result="wrong", words=str(error))
    except BridgeError as error:
        outcome = Outcome(result="refused", words=str(error))
    except Exception as error:  # the libraries raise anything
        traceback.print_exc()
        outcome = Outcome(result="error", words=f"{type(error).__name__}: {error}".splitlines()[0][:300])
    outcome.seconds = round(time.monotonic() - begin, 1)
    return outcome


def _check(case: ModelCase, folder: Path) -> Outcome:
    module = case.architecture.module(getattr(torch, case.trainer_dtype))
    states = []
    for version in range(VERSIONS):
        perturb(module, version)
        states.append({name: tensor.detach().clone() for name, tensor in module.state_dict().items()})
        module.save_pretrained(folder / str(version))

    engine = _start(case, folder, VERSIONS - 1)
    expected, fresh = _ask(engine), _in_model(engine, snapshot)
    _end(engine)
    del engine

    engine = _start(case, folder, 0)
    answers = [_ask(engine)]
    worker, weight_map = _join(engine, module, answers[0])
    outcome = Outcome(result="equal", methods=dict(Counter(str(bound.method) for bound in weight_map.parameters)))
    writer = worker.make_writer(weight_map, Mode.SHADOW)
    for version in range(1, VERSIONS):
        receive(weight_map, writer.received, states[version])
        writer.commit()
        engine.reset_prefix_cache()
        answers.append(_ask(engine))
    wrong = different(fresh, _in_model(engine, snapshot))
    _end(engine)
    if len({str(answer) for answer in answers}) < VERSIONS:
        outcome.result, outcome.words = "error", "the versions give the same answers: nothing was shown"
    elif wrong:
        outcome.result, outcome.words = "wrong", f"{len(wrong)} tensors: {', '.join(wrong[:4])}"
    elif answers[-1] != expected:
        outcome.result, outcome.words = "wrong", "the answers differ, though all tensors of this rank are the same"
    return outcome


def _join(engine: Any, module: nn.Module, answer: list[Any]) -> tuple[Any, Any]:
    """A worker's side of the bridge, and its weight map.

    Raises:
        JoiningChanged: the engine holds or answers something else now.
        BridgeError: it refuses the model, and is what it was.
    """
    # Some tensors take their final form in the first forward pass, which has been.
    before, held = _in_model(engine, snapshot), _in_model(engine, Held)
    worker = _in_worker(engine)
    try:
        weight_map = worker.learn(union([(description(weights(module)), [0])], 1).manifest)
    finally:
        changed = sorted({*held.changed(), *different(before, _in_model(engine, snapshot))})
        if not changed and _ask(engine) != answer:
            changed = ["the answers"]
        if changed:
            raise JoiningChanged(f"joining changed {', '.join(changed[:4])}")
    return worker, weight_map


def perturb(module: nn.Module, seed: int) -> None:
    """Changes every parameter and every persistent buffer of floating point, within what keeps a model sane."""
    generator = torch.Generator().manual_seed(seed)
    persistent = module.state_dict(keep_vars=True)
    done: set[int] = set()
    with torch.no_grad():
        for tensor in persistent.values():
            if id(tensor) in done or not tensor.is_floating_point():
                continue
            done.add(id(tensor))
            noise = torch.randn(tensor.shape, generator=generator)
            tensor.copy_(tensor.float() * (1 + 0.1 * noise) + 0.05 * noise.flip(0) if tensor.dim() else tensor * 1.25)


def receive(weight_map: Any, received: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """What a trainer of one rank would send this worker, over a plan and its messages."""
    from launcher.bridge.codec.local import LocalTensor
    from launcher.bridge.codec.pack import pack, unpack
    from launcher.bridge.weightmap import requirements

    specs = [TensorSpec(name=e.name, shape=e.shape, dtype=e.dtype) for e in weight_map.owners().values()]
    at = Location(node=0, gpu=0)
    engine = Engine(parameters=(requirements(weight_map),), locations=(at,))
    plan = reshard(place(specs, [(".*", replicated(1))]), [engine], [at])
    for message in plan.incoming(Receiver(engine=0, rank=0)):
        buffer = torch.empty(message.nbytes, dtype=torch.uint8)
        pack(message, {spec.name: LocalTensor.whole(tensors[spec.name]) for spec in specs}, buffer)
        unpack(message, buffer, dict(received))


def _start(case: ModelCase, folder: Path, version: int) -> Any:
    """An engine of this rank, started from the checkpoint of a version."""
    from vllm import LLM

    import launcher.bridge.vllm.plain_linear  # noqa: F401  (registers the method for linear layers)

    options: dict[str, Any] = {
        "model": str(folder / str(version)),
        "dtype": case.dtype,
        "enforce_eager": True,
        "quantization": "launcher-plain",
        "max_model_len": 64,
        "max_num_seqs": 4,
        "skip_tokenizer_init": True,
        "kv_cache_memory_bytes": KV_BYTES,
        "disable_log_stats": True,
        "seed": 0,
    }
    if case.tp > 1:
        from launcher.testing.models.executor import ForkedRank

        ForkedRank.meeting = f"file://{folder.parent}/{folder.parent.name}-{version}"
        options |= {"tensor_parallel_size": case.tp, "distributed_executor_backend": ForkedRank}
    return LLM(**options, **case.architecture.engine)


def _ask(engine: Any) -> list[Any]:
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0, max_tokens=TOKENS, logprobs=1, ignore_eos=True, detokenize=False)
    prompts = [{"prompt_token_ids": tokens} for tokens in PROMPTS]
    texts = [request.outputs[0] for request in engine.generate(prompts, sampling, use_tqdm=False)]
    return [[(t, logprobs[t].logprob) for t, logprobs in zip(x.token_ids, x.logprobs, strict=True)] for x in texts]


def _in_model(engine: Any, function: Callable[[nn.Module], T]) -> T:
    found: T = engine.apply_model(function)[0]
    return found


def _in_worker(engine: Any) -> Any:
    from launcher.bridge.vllm.worker import ModelWorker

    return engine.collective_rpc(ModelWorker)[0]


def _end(engine: Any) -> None:
    from vllm.distributed import cleanup_dist_env_and_memory

    engine.llm_engine.engine_core.shutdown()
    gc.collect()
    cleanup_dist_env_and_memory()
