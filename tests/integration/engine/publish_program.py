"""A trainer for the tests: publishes known weights to every engine and writes down what the engines answer.

``python -m tests.integration.engine.publish_program OUT.json CHECKPOINT_DIR``
"""

from __future__ import annotations

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from launcher import bridge
from launcher.common import keys
from launcher.common.errors import BridgeError
from launcher.config import load_run_config
from launcher.inference.client import api_key, inference_urls
from tests.integration.engine.questions import ask, greedy


def perturbed(model: torch.nn.Module, seed: int) -> dict[str, torch.Tensor]:
    """New values for every weight, quite different from the old ones, biases and norms included."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (tensor + 0.5 * tensor.std().nan_to_num(0.1) * torch.randn(tensor.shape, generator=generator))
        for name, tensor in model.state_dict().items()
    }


def refusal(call: Any) -> str:
    """The message of the error that the call must raise."""
    try:
        call()
    except (BridgeError, ValueError) as error:
        return str(error)
    return ""


def earlier_names(model: torch.nn.Module, whole: dict[str, torch.Tensor], name: str) -> dict[str, Any]:
    """The earlier bridge's interface, from joining to leaving."""
    joined = bridge.create_bridge_from_training_config({"device": "cpu", "num_inference_nodes": 1, "lr": 1e-3})
    joined.initialize()
    facts: dict[str, Any] = {"begin": joined.update_count}
    model.load_state_dict(perturbed(model, seed=11))
    bridge.broadcast_weights(joined, model)
    model.load_state_dict(whole)
    joined.broadcast_weights(model)
    joined.broadcast_single_param(model, name)
    joined.send_heartbeat()
    facts["served"] = joined.notify_update()
    facts["end"] = joined.update_count
    joined.cleanup()
    joined.cleanup()
    facts["after_cleanup"] = refusal(lambda: joined.broadcast_weights(model))
    return facts


def paused(url: str, key: str) -> dict[str, Any]:
    """A request before, during and after a pause that the bridge's own routes make."""
    bridge_key = keys.bridge_key(keys.token_from_environment())
    with ThreadPoolExecutor() as pool:
        pause = ask(url, "/bridge/pause", bridge_key, {})
        request = pool.submit(greedy, url, key)
        while_paused = ask(url, "/bridge/is_paused", bridge_key)
        finished_early = wait([request], timeout=2.0).done != set()
        resume = ask(url, "/bridge/resume", bridge_key, {})
        answers = request.result(timeout=60)
    return {
        "pause": pause[:2],
        "while_paused": while_paused[:2],
        "finished_early": finished_early,
        "resume": resume[:2],
        "answers": answers,
    }


def main(out: Path, checkpoint: Path) -> None:
    """Publishes versions 1 to 4 and records everything."""
    path = os.environ["LAUNCHER_MODEL_PATH"]
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    connection = bridge.connect()
    urls, key = inference_urls(), api_key()
    url = urls[0]
    facts: dict[str, Any] = {"urls": urls}

    original = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    facts["unpublished"] = greedy(url, key)
    facts["report_1"] = connection.publish(model, version=1).__repr__()
    facts["v1"] = greedy(url, key)

    model.load_state_dict(perturbed(model, seed=7))
    report = connection.publish(model, version=2)
    facts["bytes_2"] = report.bytes
    wire = getattr(torch, load_run_config(Path(os.environ["LAUNCHER_RUN_DIR"])).model.dtype).itemsize
    storages = {id(tensor): tensor for tensor in model.state_dict(keep_vars=True).values()}
    facts["bytes_expected"] = sum(tensor.numel() * wire for tensor in storages.values())
    facts["v2"] = greedy(url, key)
    model.save_pretrained(checkpoint)
    AutoTokenizer.from_pretrained(path).save_pretrained(checkpoint)

    facts["stale"] = refusal(lambda: connection.publish(model, version=2))
    facts["unknown_name"] = refusal(lambda: connection.publish(model, version=3, names=["no.such.weight"]))
    facts["info_2"] = [asdict(status) for status in connection.info()]

    model.load_state_dict(original)
    connection.publish(model, version=3)
    facts["v3"] = greedy(url, key)

    # One parameter only: the others must stay. Then all of them again.
    name = "model.layers.0.self_attn.k_proj.weight"
    changed = dict(original)
    changed[name] = original[name] * 3
    model.load_state_dict(changed)
    connection.publish(model, version=4, names=[name])
    facts["v4_single"] = greedy(url, key)
    connection.publish(model, version=5)
    facts["v5_whole"] = greedy(url, key)

    # A name that the engine does not know: refused before a byte moves.
    model.register_buffer("launcher_unknown", torch.ones(3))
    facts["unknown_to_engine"] = refusal(lambda: connection.publish(model, version=6))
    facts["info_refused"] = [asdict(status) for status in connection.info()]
    del model.launcher_unknown
    connection.publish(model, version=7)
    facts["v7"] = greedy(url, key)
    facts["info_7"] = [asdict(status) for status in connection.info()]

    facts["open"] = {
        path: ask(url, path, None, body)[0]
        for path, body in [
            ("/v1/models", None),
            ("/metrics", None),
            ("/tokenize", {"prompt": "1"}),
            ("/bridge/info", None),
            ("/bridge/pause", {}),
            ("/health", None),
        ]
    }
    facts["with_api_key"] = {
        path: ask(url, path, key, body)[0]
        for path, body in [
            ("/bridge/info", None),
            ("/bridge/resume", {}),
            ("/collective_rpc", {"method": "bridge_call"}),
            ("/pause", {}),
            ("/update_weights", {}),
            ("/reset_prefix_cache", {}),
            ("/sleep", {}),
        ]
    }
    facts["pause"] = paused(url, key)
    connection.close()
    connection.close()
    facts["after_close"] = greedy(url, key)
    facts["compat"] = earlier_names(model, changed, name)
    facts["after_compat"] = greedy(url, key)
    out.write_text(json.dumps(facts))


if __name__ == "__main__":
    torch.manual_seed(0)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
