"""A trainer for the tests that publishes versions without end, and is killed: ``python -m
tests.integration.engine.torn_program``

It says ``ready`` once it has imported what it needs, takes one JSON line (url, token, model, version, mode), says
``joining``, and then every version that the engine serves. It knows no launcher around it, only the bridge.
"""

from __future__ import annotations

import itertools
import json
import os
import sys

import torch
from safetensors.torch import load_file
from torch import nn

from launcher.bridge import connect
from launcher.bridge.settings import BridgeSettings
from launcher.common.errors import TransferError
from tests.integration.engine.load_program import write


def module_of(tensors: dict[str, torch.Tensor]) -> nn.Module:
    """A module that holds these parameters under these names, and can do nothing else."""
    root = nn.Module()
    for name, tensor in tensors.items():
        *path, leaf = name.split(".")
        module = root
        for part in path:
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        module.register_parameter(leaf, nn.Parameter(tensor.float()))
    return root


def main() -> None:
    """Publishes from the given version on."""
    torch.set_num_threads(1)
    print("ready", flush=True)
    order = json.loads(sys.stdin.readline())
    model = module_of(load_file(f"{order['model']}/model.safetensors"))
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
