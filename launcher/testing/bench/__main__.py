"""Runs one measurement: ``python -m launcher.testing.bench NAME [--help]``"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from launcher.common.errors import LauncherError

BENCHES = {
    "bridge": ("launcher.testing.bench.bridge", "ways of the weights from a trainer into engines, against each other"),
    "control": (
        "launcher.testing.bench.control",
        "what commands cost on a login node, with thousands of nodes and runs",
    ),
}
"""By name: the module whose ``main(arguments)`` measures, and what it measures."""


def main(arguments: Sequence[str]) -> int:
    """Runs the measurement that the first argument names; its exit code."""
    if not arguments or arguments[0] not in BENCHES:
        print("usage: python -m launcher.testing.bench NAME [--help]\n")
        for name, (_module, what) in BENCHES.items():
            print(f"  {name:<10} {what}")
        return 0 if arguments and arguments[0] in {"--help", "-h"} else 2
    module, _what = BENCHES[arguments[0]]
    measure: Callable[[Sequence[str]], int] = import_module(module).main
    try:
        return measure(arguments[1:])
    except LauncherError as error:
        print(f"launcher: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
