"""The verdict over all nodes: who is to blame, who differs, and what is nobody's own fault."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.common.codec import from_json, to_json
from launcher.control.preflight_report import BadNode, Finding, PeerReport, PreflightReport, headline, table
from launcher.preflight.aggregate import compare_reports
from launcher.preflight.context import peers_of

HOSTS = ("a", "b", "c", "d", "e")


def complaint(about: int, name: str = "connect") -> PeerReport:
    return PeerReport(name=name, about=about, text="cannot be reached")


def judge(
    complaints: dict[int, list[PeerReport]], facts: dict[int, dict[str, str]] | None = None
) -> tuple[BadNode, ...]:
    reports = []
    for rank in range(len(HOSTS)):
        report = PreflightReport(
            node_rank=rank,
            seconds=0.1,
            peer_reports=tuple(complaints.get(rank, [])),
            facts=(facts or {}).get(rank, {"torch": "2.13"}),
        )
        reports.append(from_json(to_json(report), PreflightReport))
    return compare_reports(HOSTS, reports).bad


def test_healthy_nodes_pass() -> None:
    assert judge({}) == ()


def test_a_node_that_nobody_reaches_is_to_blame_and_not_its_observers() -> None:
    (bad,) = judge({1: [complaint(3)], 2: [complaint(3)]})
    assert (bad.hostname, bad.checks) == ("d", ("connect",))
    assert bad.reason == "connect: cannot be reached (seen from b, c)"
    assert bad.is_its_own


def test_a_node_that_reaches_nobody_is_to_blame_itself() -> None:
    (bad,) = judge({3: [complaint(0), complaint(4)]})
    assert bad.hostname == "d"
    assert "of a it says: cannot be reached" in bad.reason


def test_node_0_is_to_blame_if_all_others_say_so() -> None:
    (bad,) = judge({rank: [complaint(0, "names")] for rank in range(1, 5)})
    assert bad.hostname == "a"


def test_a_clock_is_wrong_at_its_owner_unless_all_are() -> None:
    text = "clock 9.0 s ahead of node 0's, `preflight.max_clock_skew_s` is 2"
    skew = PeerReport(name="clock", about=0, text=text)
    (bad,) = judge({2: [skew]})
    assert (bad.hostname, bad.reason) == ("c", f"clock: {text}")
    (bad,) = judge({rank: [skew] for rank in range(1, 5)})
    assert bad.hostname == "a"


def test_the_odd_versions_are_named_against_the_usual_ones() -> None:
    (bad,) = judge({}, {4: {"torch": "2.12", "vllm": "0.32"}})
    assert bad.hostname == "e"
    assert bad.reason == "versions: torch is 2.12, elsewhere 2.13; vllm is 0.32, elsewhere none"


def test_without_a_majority_node_0_is_right() -> None:
    new = PreflightReport(node_rank=1, seconds=0, facts={"code": "new"})
    old = PreflightReport(node_rank=0, seconds=0, facts={"code": "old"})
    assert [bad.hostname for bad in compare_reports(["a", "b"], [new, old]).bad] == ["b"]


def test_what_is_wrong_everywhere_is_no_fault_of_a_node() -> None:
    reports = []
    model = Finding(name="model", ok=False, text="`model.path` cannot be read here")
    for rank in range(2):
        more = [Finding(name="shm", ok=False, text="full")] if rank else []
        reports.append(PreflightReport(node_rank=rank, seconds=0, findings=(model, *more)))
    assert [(bad.hostname, bad.is_its_own) for bad in compare_reports(["a", "b"], reports).bad] == [
        ("a", False),
        ("b", True),
    ]


def test_a_silent_node_is_bad() -> None:
    bad_nodes = compare_reports(["a", "b"], [PreflightReport(node_rank=0, seconds=0)]).bad
    assert [(bad.hostname, bad.checks) for bad in bad_nodes] == [("b", ("silent",))]


def test_the_table_has_one_line_for_each_bad_node() -> None:
    bad = judge({1: [complaint(3)], 2: [complaint(3)]}, {4: {"torch": "2.12"}})
    assert headline(bad, 5) == "Preflight failed on 2 nodes of 5; no worker was started."
    assert table(bad) == [
        "node  hostname  what is wrong",
        "3     d         connect: cannot be reached (seen from b, c)",
        "4     e         versions: torch is 2.12, elsewhere 2.13",
    ]


@settings(deadline=None)
@given(st.integers(1, 5000), st.data())
def test_every_node_has_few_peers_and_is_looked_at_by_two_others(nodes: int, data: st.DataObject) -> None:
    rank = data.draw(st.integers(0, nodes - 1))
    peers = peers_of(rank, nodes)
    assert rank not in peers
    assert len(peers) <= 3
    assert rank == 0 or 0 in peers
    if nodes > 1:
        before = (rank - 1) % nodes
        far = (rank - max(2, nodes // 2)) % nodes
        assert rank in peers_of(before, nodes)
        assert far == rank or rank in peers_of(far, nodes)
