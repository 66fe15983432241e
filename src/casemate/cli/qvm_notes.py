"""qvm-notes: show, edit and replace what was written about a qube."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from casemate.cli import json_output, tool
from casemate.client.qubes import Qubes
from casemate.wire.errors import CasemateError, printable

PROG = "qvm-notes"


def _edited(text: str) -> str:
    """The text after a person has changed it in an editor."""
    import shlex  # here: most tools, and most uses of this one, do not need these
    import subprocess
    import tempfile

    editor = shlex.split(os.environ.get("EDITOR") or "vi")
    with tempfile.NamedTemporaryFile("w+", suffix=".txt", prefix="qvm-notes-", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        try:
            done = subprocess.run([*editor, file.name], check=False)
        except OSError as error:
            raise CasemateError(f"the editor {editor[0]} cannot be run: {error.strerror}") from None
        if done.returncode != 0:
            raise CasemateError(f"the editor ended with status {done.returncode}; the notes stay as they were")
        with open(file.name, encoding="utf-8", errors="replace") as again:
            return again.read()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool."""
    parser = tool.Parser(PROG, "Show, edit and replace the notes about a qube.")
    parser.one_qube()
    parser.add_argument("-f", "--force", action="store_true", help="do not ask before notes are deleted")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("-e", "--edit", action="store_true", help="edit them with $EDITOR (this is the default)")
    what.add_argument("-p", "--print", action="store_true", help="show them")
    json_output.option(what)
    what.add_argument(
        "-i", "--import", dest="file", metavar="FILE", help="replace them by a file; - for standard input"
    )
    what.add_argument("-s", "--set", dest="text", metavar="TEXT", help="replace them by a text")
    what.add_argument("--append", metavar="TEXT", help="add a text at their end")
    what.add_argument("-d", "--delete", action="store_true", help="take them away")

    def body(args: argparse.Namespace, qubes: Qubes) -> int:
        name = args.VMNAME
        old = qubes.call("admin.vm.notes.Get", "", name)
        if json_output.wanted(args):
            return json_output.write({"name": name, "notes": old})
        if args.print:
            # What a qube's owner wrote may come from anywhere; on a terminal control characters are shown, not sent.
            shown = "\n".join(printable(line, 65536) for line in old.splitlines()) if sys.stdout.isatty() else old
            sys.stdout.write(f"{shown}\n")
            return 0
        if args.append is not None:
            new = old + ("\n" if old and not old.endswith("\n") else "") + args.append
        elif args.text is not None:
            new = args.text
        elif args.file is not None:
            try:
                with open(0 if args.file == "-" else args.file, "rb", closefd=args.file != "-") as file:
                    new = file.read().decode("utf-8", "replace")
            except OSError as error:
                raise CasemateError(f"{args.file}: {error.strerror}") from None
        elif args.delete:
            new = ""
        else:
            new = _edited(old)
            if new == old:
                return 0
        if args.delete and not args.force and not tool.confirmed(f"Delete the notes of {name}?", "", sys.stderr):
            return 2
        qubes.call("admin.vm.notes.Set", "", name, new)
        return 0

    return tool.run(parser, body, argv)
