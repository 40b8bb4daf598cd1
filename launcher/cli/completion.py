"""``launcher completion bash|zsh|fish``: what a shell needs to complete commands, runs, presets and settings."""

from __future__ import annotations

from collections.abc import Sequence

from launcher.cli.parser import CommandParser

SCRIPTS = {
    # bash takes `=` and `:` as the end of a word; what stands before it must not be repeated.
    "bash": """\
_launcher() {
    local IFS=$'\\n'
    COMPREPLY=($("$1" completion bash --line "${COMP_LINE:0:$COMP_POINT}" 2>/dev/null))
}
complete -o nospace -F _launcher launcher""",
    # zsh would put a space at the end in quotes, so it is to add it itself.
    "zsh": """\
_launcher() {
    local -a found
    found=("${(@f)$("${words[1]}" completion zsh --line "${(j: :)words[1,CURRENT]}" 2>/dev/null)}")
    compadd -Q -S '' -- ${found:#* }
    compadd -Q -- ${${(M)found:#* }% }
}
compdef _launcher launcher""",
    # fish adds a space by itself, but not after `=` or a dot.
    "fish": """\
function _launcher
    set -l program (commandline -opc)[1]
    $program completion fish --line (commandline -cp) 2>/dev/null | string trim --right
end
complete -c launcher -f -a '(_launcher)'""",
}


def main(arguments: Sequence[str]) -> int:
    """Prints the script, or, when the script asks, the candidates."""
    parser = CommandParser(
        "completion",
        "Prints the completion script of a shell: commands, their options, names of runs and sweeps, presets of the"
        " configuration, settings and their values.",
        examples=['eval "$(launcher completion bash)"', "launcher completion fish | source"],
    )
    parser.add_argument("shell", choices=sorted(SCRIPTS))
    parser.add_argument("--line", help="the line so far; prints what may follow (the scripts ask like this)")
    options = parser.parse_args(arguments)
    if options.line is None:
        print(SCRIPTS[options.shell])
        return 0
    from launcher.cli.candidates import candidates

    word = "" if options.line.endswith(" ") else options.line.split()[-1]
    known = max(word.rfind("="), word.rfind(":")) + 1 if options.shell == "bash" else 0
    for candidate in candidates(options.line):
        print(candidate[known:])
    return 0
