"""What logs mean: real ones of torch, gloo, NCCL, vLLM and the operating system, cut to their ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launcher.events.failure_kinds import ADVICE
from launcher.events.failure_kinds import FailureKind as Kind
from launcher.events.log_rules import RULES, SLURM_STATES, classify
from launcher.events.log_tail import analyze_log, recorded

LOGS = Path(__file__).parents[1] / "triage_logs"

WANTED: dict[str, tuple[Kind, bool, str]] = {
    "cuda-assert": (Kind.CRASHED, False, "device-side assert triggered"),
    "cuda-oom": (
        Kind.GPU_MEMORY,
        False,
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 4.00 GiB.",
    ),
    "enospc": (Kind.DISK, False, "OSError: [Errno 28] No space left on device"),
    "enospc_st": (Kind.DISK, False, "No space left on device (os error 28)"),
    "enospc_torch": (Kind.DISK, False, "unexpected pos 576 vs 534"),
    "gloo-hang-0": (Kind.NCCL_TIMEOUT, True, "Timed out waiting 3000ms for recv operation to complete"),
    "gloo-kill-0": (Kind.CONNECTION, True, "Connection reset by peer"),
    "gloo-raise-0": (Kind.CONNECTION, True, "Connection closed by peer"),
    "gloo-raise-1": (Kind.USER_CODE, False, "ValueError: the loss is not a number"),
    "hostmem": (Kind.HOST_MEMORY, False, "MemoryError"),
    "hostmem_torch": (Kind.HOST_MEMORY, False, "DefaultCPUAllocator: can't allocate memory"),
    "import": (Kind.IMPORT, False, "No module named 'no_such_module'"),
    "importname": (Kind.IMPORT, False, "cannot import name 'no_such_name' from 'torch'"),
    "nccl-hang-0": (Kind.NCCL_TIMEOUT, True, "Watchdog caught collective operation timeout: WorkNCCL(SeqNum=2"),
    "nccl-hang-1": (Kind.NCCL_TIMEOUT, True, "Received a dump signal due to a collective timeout from  rank 0"),
    "port": (Kind.PORT, False, "Address already in use"),
    "port_store": (Kind.PORT, False, "failed to listen on any local network address"),
    "store_get": (Kind.NCCL_TIMEOUT, True, "wait timeout after 1000ms, keys: /x"),
    "store_refused": (Kind.NCCL_TIMEOUT, True, "The client socket has timed out after 1000ms"),
    "store_timeout": (
        Kind.NCCL_TIMEOUT,
        True,
        "Timed out after 2 seconds waiting for clients. 1/2 clients joined.",
    ),
    # The cause stands 130 lines above the end, in another process of the engine.
    "vllm-kv": (Kind.HOST_MEMORY, False, "ValueError: Available memory on node 0 (12.34/17.09 GiB)"),
    "vllm-killworker": (Kind.KILLED, False, "Worker proc VllmWorker-0 died unexpectedly"),
    "vllm-len": (Kind.CONFIGURATION, False, "User-specified max_model_len (999999) is greater than the derived"),
}


def test_every_log_has_an_expectation() -> None:
    assert {path.stem for path in LOGS.glob("*.txt")} == set(WANTED)


@pytest.mark.parametrize("name", sorted(WANTED))
def test_a_real_log_is_understood(name: str) -> None:
    kind, is_symptom, words = WANTED[name]
    trouble = analyze_log((LOGS / f"{name}.txt").read_text())
    assert trouble is not None
    assert (trouble.kind, trouble.is_symptom) == (kind, is_symptom), trouble.line
    assert words in trouble.line


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("slurmstepd: error: Detected 1 oom_kill event in StepId=71.0.", Kind.HOST_MEMORY),
        ("/env/bin/python: /lib/libstdc++.so.6: version `GLIBCXX_3.4.32' not found (required by x.so)", Kind.IMPORT),
        ("OSError: [Errno 122] Disk quota exceeded: '/runs/a/checkpoint'", Kind.DISK),
        ("ValueError: No available memory for the cache blocks.", Kind.GPU_MEMORY),
        ("ValueError: Free memory on device cuda:0 (3/79 GiB) is less than desired GPU memory", Kind.GPU_MEMORY),
        ("launcher: vLLM refuses its arguments: unrecognized arguments: --nope.", Kind.CONFIGURATION),
        ("launcher: Port 9000 on 10.77.0.3 is taken, and `inference.strict_ports` is true.", Kind.PORT),
        ("torch.distributed.DistBackendError: NCCL error in: x.cpp:1: ncclRemoteError", Kind.CONNECTION),
        ("httpx.ConnectError: All connection attempts failed", Kind.CONNECTION),
        ("my.package.errors.RolloutFailure: nothing came", Kind.USER_CODE),
        ("step 17  loss 0.3", None),
    ],
)  # fmt: skip
def test_single_lines(line: str, kind: Kind | None) -> None:
    rule = classify(line)
    assert (rule.kind if rule else None) == kind


def test_an_old_traceback_that_the_program_went_on_from_is_not_the_reason() -> None:
    old = (
        "Traceback (most recent call last):\n  File 'a.py', line 1\nModuleNotFoundError: No module named 'flash_attn'\n"
    )
    steps = "".join(f"step {step}\n" for step in range(40))
    end = "Traceback (most recent call last):\n  File 'b.py', line 2\nValueError: the loss is not a number\n"
    trouble = analyze_log(old + steps + end)
    assert trouble is not None
    assert trouble.kind is Kind.USER_CODE
    assert "flash_attn" not in "\n".join(trouble.lines)


def test_the_last_line_of_a_killed_process_is_no_reason() -> None:
    assert analyze_log("step 17\n", is_exit=False) is None
    trouble = analyze_log("bye\n")
    assert trouble is not None
    assert (trouble.kind, trouble.line) == (Kind.UNKNOWN, "bye")


def test_a_recorded_exception_has_its_time(tmp_path: Path) -> None:
    extra = {"py_callstack": "Traceback (most recent call last):\nValueError: x\n", "timestamp": "1795420606"}
    (tmp_path / "e.json").write_text(json.dumps({"message": {"message": "ValueError: x", "extraInfo": extra}}))
    assert recorded(tmp_path / "e.json") == (extra["py_callstack"], 1795420606.0)
    (tmp_path / "e.json").write_text('{"message": {"mess')
    assert recorded(tmp_path / "e.json") is None


def test_every_kind_has_advice() -> None:
    assert set(ADVICE) == set(Kind)
    assert {rule.kind for rule in RULES} | set(SLURM_STATES.values()) <= set(Kind)
