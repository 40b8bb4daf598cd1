"""What vLLM is told about at its start, through the entry point ``vllm.general_plugins``.

With it a vLLM that is started by hand can be fed by the bridge::

    vllm serve MODEL --middleware launcher.bridge.vllm.middleware.BridgeMiddleware \\
        --worker-extension-cls launcher.bridge.vllm.worker.BridgeWorker      (on a CPU: --quantization launcher-plain)
"""

from __future__ import annotations


def register() -> None:
    """Makes ``--quantization launcher-plain`` known on a CPU, in every process of the engine; safe to call again."""
    from launcher.bridge.vllm.compat import is_cpu

    if is_cpu():
        import launcher.bridge.vllm.plain_linear  # noqa: F401  (registers itself)
