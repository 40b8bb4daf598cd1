"""The measurement's aims are held against the numbers of the same run."""

from __future__ import annotations

from launcher.testing.bench.bridge.report import ONE_PROCESS, RAW_PEER, MethodResult, judged


def results(**milliseconds: float) -> dict[str, MethodResult]:
    names = {
        "raw": RAW_PEER,
        "copy": ONE_PROCESS,
        "broadcast": "broadcast per parameter",
        "packed": "packed broadcast, 256 MiB",
        "peer": "ours: peer",
        "peer_verified": "ours: peer, verified",
        "nccl": "ours: nccl",
    }
    return {names[key]: MethodResult(name=names[key], seconds=[value / 1e3] * 3) for key, value in milliseconds.items()}


def verdicts(found: dict[str, MethodResult]) -> dict[str, bool]:
    return {aim["text"]: aim["is_met"] for aim in judged(found)}


def test_a_way_is_held_against_the_ceiling_and_the_best_of_the_others() -> None:
    found = verdicts(results(raw=40.0, peer=41.0, peer_verified=43.0, broadcast=48.0, packed=55.0, nccl=50.0))
    assert found[f"ours: peer: 0.976 of `{RAW_PEER}`, aim 0.97"]
    assert not found[f"ours: peer, verified: 0.930 of `{RAW_PEER}`, aim 0.95"]
    assert not found["ours: peer, verified: 0.953 of `ours: peer`, aim 0.98"]
    assert not found["ours: nccl: 0.960 of `broadcast per parameter`, aim 1.00"]


def test_memory_counts_what_the_driver_gave_as_well_as_torch() -> None:
    found = results(peer=41.0)
    found["ours: peer"].held_bytes = 100 << 20
    (text,) = verdicts(found)
    assert text == "ours: peer: 100.0 MiB of extra memory, aim 64 MiB"
    assert not verdicts(found)[text]
    found["ours: peer"].held_bytes = 10 << 20
    assert list(verdicts(found).values()) == [True]


def test_what_was_not_measured_is_not_judged() -> None:
    assert verdicts(results(raw=40.0)) == {}
