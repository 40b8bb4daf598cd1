"""Node 0's side: compares the reports of all nodes, and finds the bad ones. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from launcher.control.preflight_report import BadNode, Finding, PreflightReport, PreflightResult

VERSIONS = "versions"
NO_ANSWER = "silent"
"""Name of the check that a node fails which never reports."""


def compare_reports(hostnames: Sequence[str], reports: Sequence[PreflightReport]) -> PreflightResult:
    """Compares what the nodes found; a node without a report is bad for that alone.

    Args:
        hostnames: of all nodes, in the order of their ranks.
    """
    return _Comparison(hostnames, reports).result()


class _Comparison:
    def __init__(self, hostnames: Sequence[str], reports: Sequence[PreflightReport]) -> None:
        self._hostnames = tuple(hostnames)
        self._reports = {report.node_rank: report for report in reports}

    def result(self) -> PreflightResult:
        findings: dict[int, list[Finding]] = {rank: [*report.findings] for rank, report in self._reports.items()}
        for rank in range(len(self._hostnames)):
            if rank not in findings:
                findings[rank] = [Finding(name=NO_ANSWER, ok=False, text="has not reported what it found")]
        for rank, finding in [*self._attributed(), *self._outliers()]:
            findings[rank].append(finding)
        return PreflightResult(
            findings={rank: tuple(found) for rank, found in findings.items()}, bad=tuple(self._bad(findings))
        )

    def _attributed(self) -> list[tuple[int, Finding]]:
        """For each check: the fewest nodes that explain all peer reports, the one with most of them first."""
        links: dict[str, list[tuple[int, int, str]]] = defaultdict(list)
        for rank, report in sorted(self._reports.items()):
            for fault in report.peer_reports:
                links[fault.name].append((rank, fault.about, fault.text))
        attributed = []
        for name, open_links in links.items():
            left = open_links
            while left:
                counts = Counter(end for observer, about, _ in left for end in {observer, about})
                # Among equals the one that was reported; node 0 last, whose own connection to every node works.
                about = Counter(about for _, about, _ in left)
                worst = max(counts, key=lambda end: (counts[end], end != 0, about[end], -end))
                mine = [link for link in left if worst in link[:2]]
                left = [link for link in left if worst not in link[:2]]
                attributed.append((worst, Finding(name=name, ok=False, text=self._sentence(worst, mine))))
        return attributed

    def _sentence(self, worst: int, links: Sequence[tuple[int, int, str]]) -> str:
        observers = [self._hostnames[observer] for observer, about, _ in links if about == worst and observer != worst]
        if observers:
            text = next(text for _, about, text in links if about == worst)
            return f"{text} (seen from {', '.join(observers[:3])}{', ...' if observers[3:] else ''})"
        _, about, text = links[0]
        # A clock is measured by its owner, against node 0's; the text is about itself.
        return text if about == 0 and text.startswith("clock") else f"of {self._hostnames[about]} it says: {text}"

    def _outliers(self) -> list[tuple[int, Finding]]:
        """Nodes with other facts than most; where no side is larger, node 0's counts."""
        names = sorted({name for report in self._reports.values() for name in report.facts})
        differences: dict[int, list[str]] = defaultdict(list)
        for name in names:
            values = {rank: report.facts.get(name, "none") for rank, report in sorted(self._reports.items())}
            counts = Counter(values.values())
            usual = max(counts, key=lambda value: (counts[value], value == values.get(0)))
            for rank, value in values.items():
                if value != usual:
                    differences[rank].append(f"{name} is {value}, elsewhere {usual}")
        return [(rank, Finding(name=VERSIONS, ok=False, text="; ".join(words))) for rank, words in differences.items()]

    def _bad(self, findings: Mapping[int, Sequence[Finding]]) -> list[BadNode]:
        failed = {rank: [f for f in found if not f.ok] for rank, found in sorted(findings.items())}
        by_check = Counter(name for found in failed.values() for name in {finding.name for finding in found})
        everywhere = {name for name, count in by_check.items() if count == len(self._hostnames) > 1}
        return [
            BadNode(
                node_rank=rank,
                hostname=self._hostnames[rank],
                checks=tuple(finding.name for finding in found),
                reason="; ".join(f"{finding.name}: {finding.text}" for finding in found),
                is_its_own=not everywhere.issuperset(finding.name for finding in found),
            )
            for rank, found in failed.items()
            if found
        ]
