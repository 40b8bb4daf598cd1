"""``launcher plan [overrides]``: the layout of a run, without starting anything."""

from __future__ import annotations

from collections.abc import Sequence

from launcher.cli.parser import CommandParser, compose_and_check

PATIENCE_S = 5.0
"""Longest wait for what SLURM knows about its nodes; a plan is made without SLURM, too."""


def main(arguments: Sequence[str]) -> int:
    """Prints the layout as a table or as JSON."""
    from launcher.layout import layout_to_json, plan, render_table
    from launcher.submit.prepare import cpu_line, prepared

    parser = CommandParser(
        "plan",
        "Shows who would be where; starts nothing.",
        examples=[
            "launcher plan experiment=qwen3_8b layout.nodes=4 layout.inference_nodes=2",
            "launcher plan layout.nodes=2 'layout.hostnames=[gpu-01,gpu-02]' --json",
        ],
    )
    parser.add_overrides("as for a run; `layout.hostnames=[a,b]` gives nodes their names")
    parser.add_json("every process with its command and environment")
    options = parser.parse_intermixed_args(arguments)
    result = prepared(compose_and_check(options), timeout_s=PATIENCE_S)
    layout = plan(result.config)
    if options.json:
        print(layout_to_json(layout).rstrip())
        return 0
    print(render_table(layout))
    for line in filter(None, [cpu_line(result.config), *result.notes]):
        print(line)
    return 0
