"""``python -m casemate.cli.completion DIR``: completion for bash, zsh and fish, and the table that it goes by.

::

    parsers (declarations.py) ──▶ data/completion.tsv ──▶ complete.py, at each Tab
    TOOLS ──▶ DIR/bash/TOOL, DIR/zsh/_casemate, DIR/fish/TOOL.fish    a few lines each, that ask complete.py

What a value may be follows from how help names it (its metavar): that is declared here, once for all tools.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from casemate.cli import complete, declarations

SHELLS = ("bash", "zsh", "fish")

_STATES = {
    "qvm-start": "Halted",
    "qvm-remove": "Halted",
    "qvm-shutdown": "Running,Paused,Transient",
    "qvm-kill": "Running,Paused,Transient,Halting",
    "qvm-restart": "Running",
    "qvm-pause": "Running",
    "qvm-unpause": "Paused",
    "qvm-console": "Running",
    "casemate qubesdb": "Running",
    "qvm-run": "!dom0",
    "qvm-copy-to-vm": "!dom0",
    "qvm-move-to-vm": "!dom0",
    "qvm-clone": "!dom0",
}
"""Qubes that a tool is mostly called for: those in these states."""

_NAMED = {
    "BACKEND:DEVICE": "device:Available",
    "CLASS": "class",
    "DEVICE": "device:Available",
    "BACKUP_LOCATION": "file",
    "DIR": "file",
    "DIRECTORY": "file",
    "DRIVER": "pool:drivers",
    "FEATURE": "feature",
    "FEATURE=VALUE": "feature=",
    "FIELD,...": "property,",
    "FILE": "file",
    "FILE.toml": "file",
    "LABEL": "label",
    "NETVM": "qube",
    "PATH": "file",
    "POOL": "pool",
    "PROPERTY": "property",
    "PROPERTY=VALUE": "property=",
    "QUBE": "qube",
    "REPOSITORY": "file",
    "SERVICE": "service",
    "SOURCE": "qube",
    "TAG": "tag",
    "TARGET": "qube",
    "TEMPLATE": "qube:TemplateVM",
    "VALUE": "value",
    "VMNAME": "qube",
    "VMNAME:VOLUME": "volume",
}
"""By the name of a value in help: what completes it. A kind is explained at its function in complete.py."""

_SPECIAL = {
    ("qvm-run", "WORDS"): "qube?",
    ("qvm-run", "dispvm"): "qube:AppVM",
    ("qvm-create", "template"): "qube:TemplateVM,AppVM",
    ("qvm-create", "label"): "label",
    ("qvm-create", "pool"): "",
    ("qvm-create", "prop"): "property=",
    ("qvm-service", "value"): "words:on,off",
    ("qvm-device", "devclass"): "devclass",
    ("qvm-ls", "sort"): "property",
    ("qubes-prefs", "property"): "property:system",
    ("qubes-prefs", "value"): "value:system",
    ("qvm-features", "value"): "",
    ("qvm-volume config", "property"): "words:revisions_to_keep,rw,ephemeral",
    ("qvm-volume config", "value"): "",
    ("qvm-volume info", "property"): "",
    ("casemate policy explain", "SERVICE"): "",
}
"""By path and destination: where the name of the value is not enough."""


def kind_of(path: str, action: argparse.Action) -> str:
    """What completes a value of an option or argument; empty for what nobody can guess."""
    if isinstance(action, argparse._SubParsersAction):
        return "command"
    tool, _, command = path.partition(" ")
    if (path, action.dest) in _SPECIAL:
        return _SPECIAL[path, action.dest]
    if action.choices is not None:
        return "words:" + ",".join(map(str, action.choices))
    metavar = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
    kind = _NAMED.get(metavar, "")
    if kind == "qube" and not action.option_strings:
        states = _STATES.get(path) or _STATES.get(tool, "")
        return f"qube:{states}" if states else kind
    if kind.startswith("device") and command in ("detach", "unassign"):
        return "device:Attached" if command == "detach" else "device:Assigned"
    return kind


def _count(action: argparse.Action) -> str:
    return {None: "1", "A...": "...", "...": "..."}.get(action.nargs, str(action.nargs))  # type: ignore[arg-type]


def table() -> str:
    """The text of data/completion.tsv."""
    return "".join("\t".join(row) + "\n" for row in _rows())


def _rows() -> Iterator[tuple[str, str, str, str, str, str]]:
    """Path, ``option`` with kind and count, ``command`` with the name of its lines, or ``argument``; then help."""
    for command in declarations.commands():
        path = " ".join(command.path)
        for flag, action in command.options.items():
            count = _count(action)
            yield path, "option", flag, "" if count == "0" else kind_of(path, action), count, _text(action.help)
        for action in command.arguments:
            yield path, "argument", action.dest, kind_of(path, action), _count(action), ""
        if len(command.path) > 1:
            above, name = " ".join(command.path[:-1]), command.path[-1]
            yield above, "command", name, name, "", _text(command.help)
            for alias in command.aliases:
                yield above, "command", alias, name, "", ""


def _text(text: str | None) -> str:
    """Help as one line of the table: what shells show is ASCII."""
    return " ".join((text or "").replace("\u2026", "...").replace("%%", "%").split())


_BASH = r"""# Completion of Casemate's tools for bash; written from their declarations.
_casemate() {
    local line=${COMP_LINE:0:COMP_POINT} found value word
    COMPREPLY=()
    while IFS= read -r found; do
        value=${found%%$'\t'*}
        if [ "$value" = :files ]; then
            compopt -o default 2>/dev/null
            COMPREPLY=()
            return
        fi
        case $value in *[:=]) compopt -o nospace 2>/dev/null ;; esac
        COMPREPLY+=("$value")
    done < <(casemate __complete --line "$line" 2>/dev/null)
    # bash parts words at these characters too, and replaces only what comes after the last of them.
    word=${line##*[[:space:]]}
    case $COMP_WORDBREAKS in
    *:*) case $word in *[:=]*) word=${word%"${word##*[:=]}"} ;; *) word= ;; esac ;;
    *) case $word in *=*) word=${word%"${word##*=}"} ;; *) word= ;; esac ;;
    esac
    [ -z "$word" ] || COMPREPLY=("${COMPREPLY[@]#"$word"}")
}
complete -F _casemate @TOOLS@
"""

_ZSH = r"""#compdef @TOOLS@
# Completion of Casemate's tools for zsh; written from their declarations.
_casemate() {
    local -a found shown open
    local line value text
    found=("${(@f)$(casemate __complete -- "${(@Q)words[1,CURRENT]}" 2>/dev/null)}")
    for line in $found; do
        value=${line%%$'\t'*}
        text=${line#$value}
        [[ $value == *:files ]] && { _files; return }
        case $value in
        *[:=]) open+=("$value") ;;
        *) shown+=("${value//:/\\:}${text:+:${text#$'\t'}}") ;;
        esac
    done
    (( $#open )) && compadd -S '' -- $open
    (( $#shown )) && _describe -t values value shown
    (( $#open + $#shown ))
}
[[ $funcstack[1] == _casemate ]] && _casemate "$@" || compdef _casemate @TOOLS@
"""

_FISH = r"""# Completion of Casemate's tools for fish; written from their declarations.
function __casemate_complete
    set -l found (casemate __complete -- (commandline -opc) (commandline -ct) 2>/dev/null)
    if contains -- :files $found
        __fish_complete_path (commandline -ct)
    else
        printf '%s\n' $found
    end
end
for tool in @TOOLS@
    complete -c $tool -f -a '(__casemate_complete)'
end
"""


def tools() -> list[str]:
    """The names that are completed."""
    return ["casemate", *declarations.names()]


def script(shell: str) -> str:
    """The completion for a shell, for all tools."""
    return {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}[shell].replace("@TOOLS@", " ".join(tools()))


def write(directory: Path) -> None:
    """The files of all shells, at the names under which the shells look for them: for bash and fish one a tool."""
    for shell, main_name, others in (
        ("bash", "casemate", tools()[1:]),
        ("zsh", "_casemate", []),
        ("fish", "casemate.fish", [f"{name}.fish" for name in tools()[1:]]),
    ):
        place = directory / shell
        place.mkdir(parents=True, exist_ok=True)
        (place / main_name).write_text(script(shell), encoding="ascii")
        for name in others:
            link = place / name
            link.unlink(missing_ok=True)
            link.symlink_to(main_name)


def main(argv: list[str]) -> int:
    """Write the files of all shells below a directory; with ``--table`` the table of this package instead."""
    if argv == ["--table"]:
        path, text = Path(complete.TABLE), table()
        if not path.exists() or path.read_text(encoding="ascii") != text:
            path.write_text(text, encoding="ascii")
            print(f"{path.name} is written")
        return 0
    if len(argv) != 1:
        sys.stderr.write("usage: python -m casemate.cli.completion DIR | --table\n")
        return 2
    write(Path(argv[0]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
