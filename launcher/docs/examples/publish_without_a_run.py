"""Publishes a model's weights into a vLLM that was started by hand: two processes, and nothing else of the launcher.

The engine::

    export LAUNCHER_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
    vllm serve MODEL --port 8000 --middleware launcher.bridge.vllm.middleware.BridgeMiddleware \\
        --worker-extension-cls launcher.bridge.vllm.worker.BridgeWorker

On a CPU it also needs ``--quantization launcher-plain``. The trainer, with the same LAUNCHER_TOKEN::

    python publish_without_a_run.py http://127.0.0.1:8000 MODEL
"""

from __future__ import annotations

import os
import sys

import torch
from transformers import AutoModelForCausalLM

from launcher.bridge import BridgeSettings, connect


def main(url: str, path: str) -> None:
    """Loads a model, changes it a little, publishes it, and prints what the engine then serves."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    bridge = connect(BridgeSettings(urls=(url,), token=os.environ["LAUNCHER_TOKEN"]))
    for version in (1, 2):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.001)
        report = bridge.publish(model, version=version)
        print(f"version {report.version}: {report.bytes} bytes in {report.seconds:.2f} s")
    print(f"the engine serves version {bridge.info()[0].version}")
    bridge.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
