"""A trainer for the tests that publishes versions without end, and is killed: ``python -m tests.engine.torn_program``

It says ``ready`` once it has imported what it needs, takes one JSON line (url, token, model, version, mode), says
``joining``, and then every version that the engine serves. It knows no launcher around it, only the bridge.
"""

from __future__ import annotations

import itertools
import json
import os
import sys

import torch
from transformers import AutoModelForCausalLM

from launcher.bridge import connect
from launcher.bridge.settings import BridgeSettings
from launcher.errors import TransferError
from tests.engine.load_program import write


def main() -> None:
    """Publishes from the given version on."""
    torch.set_num_threads(1)
    print("ready", flush=True)
    order = json.loads(sys.stdin.readline())
    model = AutoModelForCausalLM.from_pretrained(order["model"], dtype=torch.float32)
    print("joining", flush=True)
    bridge = connect(
        BridgeSettings(urls=(order["url"],), token=order["token"], timeout_s=order["timeout_s"], mode=order["mode"])
    )
    for version in itertools.count(order["version"]):
        write(model, version)
        try:
            bridge.publish(model, version=version)
        except TransferError as error:
            # The engine may still be busy with what the one before left behind.
            print(f"refused {version}: {error}", file=sys.stderr, flush=True)
            continue
        print(version, flush=True)
        if version == order["last"]:
            bridge.close()
            os._exit(0)


if __name__ == "__main__":
    main()
