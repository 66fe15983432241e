"""qubes-policy: list, show, replace and remove the policy's files."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from casemate.cli import tool
from casemate.client.qubes import Qubes
from casemate.wire.errors import CasemateError, PolicyError, printable

PROG = "qubes-policy"


def _content(file: str) -> str:
    try:
        with open(0 if file == "-" else file, "rb", closefd=file != "-") as source:
            return source.read().decode("ascii")
    except UnicodeDecodeError as error:
        raise CasemateError(f"{printable(file)}: byte {error.start} is not ASCII") from None
    except OSError as error:
        raise CasemateError(f"{printable(file)}: {error.strerror}") from None


def _warn(qubes: Qubes) -> None:
    """Say it when the policy as a whole is broken: then nothing else matters."""
    from casemate.cli.policy_view import files

    try:
        files(qubes.transport.settings).load()
    except PolicyError as error:
        tool.say_error(PROG, f"THE POLICY IS BROKEN, every call is denied: {error}")


def _body(args: argparse.Namespace, qubes: Qubes) -> int:
    name = args.get or args.replace or args.remove or ""
    include = args.include or name.startswith("include/")
    kind, name = "policy.include" if include else "policy", name.removeprefix("include/")
    token = args.token or "any"
    if args.get:
        text = qubes.call(f"{kind}.Get", name)
        first, _, content = text.partition("\n")
        if args.with_token:
            sys.stderr.write(f"{first}\n")
        sys.stdout.write(content)
    elif args.replace:
        qubes.call(f"{kind}.Replace", name, payload=f"{token}\n{_content(args.file)}")
    elif args.remove:
        qubes.call(f"{kind}.Remove", name, payload=token)
    elif args.service:
        sys.stdout.write(qubes.call("policy.GetFiles", args.service))
        _warn(qubes)
    else:
        sys.stdout.write(qubes.call(f"{kind}.List"))
        _warn(qubes)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool."""
    parser = tool.Parser(
        PROG,
        "Look at and change the files of the policy. A change that would break the policy is refused.",
        "A name is that of a file without .policy; include/NAME, or --include, means a file for !include.",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("-l", "--list", action="store_true", help="list the files (this is the default)")
    what.add_argument("-s", "--service", metavar="SERVICE", help="list the files with rules for a service")
    what.add_argument("-g", "--get", metavar="NAME", help="show a file")
    what.add_argument("-r", "--replace", metavar="NAME", help="replace a file, or make it")
    what.add_argument("-d", "--remove", metavar="NAME", help="remove a file")
    parser.add_argument("-i", "--include", action="store_true", help="the files of include/")
    parser.add_argument("-f", "--file", metavar="FILE", default="-", help="take the text from here (default: stdin)")
    parser.add_argument("--with-token", action="store_true", help="with --get: write the file's token to stderr")
    parser.add_argument(
        "-t", "--token", help="change the file only if it is as this token says: as --with-token shows it, `new` if "
        "there must be none yet, `any` (default)"
    )  # fmt: skip
    return tool.run(parser, _body, argv)
