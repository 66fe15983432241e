"""qubes-policy: list, show, replace and remove the policy's files."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from casemate.cli import json_output, tool
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
    name: str = args.NAME
    include = args.include or name == "include" or name.startswith("include/")
    name = "" if name == "include" else name.removeprefix("include/")
    if bool(name) != (args.method in ("get", "replace", "remove")):
        raise tool.UsageError(f"--{args.method} takes {'no' if name else 'the'} name of a file")
    kind, token = "policy.include" if include else "policy", args.token or "any"
    if args.method == "get":
        first, _, content = qubes.call(f"{kind}.Get", name).partition("\n")
        if args.with_token:
            sys.stderr.write(f"{first}\n")
        sys.stdout.write(content)
    elif args.method == "replace":
        qubes.call(f"{kind}.Replace", name, payload=f"{token}\n{_content(args.file)}")
    elif args.method == "remove":
        qubes.call(f"{kind}.Remove", name, payload=token)
    else:
        found = qubes.call("policy.GetFiles", args.service) if args.service else qubes.call(f"{kind}.List")
        if json_output.wanted(args):
            json_output.write(found.splitlines())
        else:
            sys.stdout.write(found)
        _warn(qubes)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool."""
    parser = tool.Parser(
        PROG,
        "Look at and change the files of the policy. A change that would break the policy is refused.",
        "NAME is that of a file without .policy; include/NAME, or --include, means a file for !include.",
    )
    what = parser.add_mutually_exclusive_group()
    methods = (
        ("-l", "list", "list the files, those of include/ with `include` as NAME (this is the default)"),
        ("-g", "get", "show a file"),
        ("-r", "replace", "replace a file, or make it, by standard input"),
        ("-d", "remove", "remove a file"),
    )
    for short, method, text in methods:
        what.add_argument(short, f"--{method}", dest="method", action="store_const", const=method, help=text)
    what.add_argument("-s", "--service", metavar="SERVICE", help="list the files with rules for a service")
    parser.add_argument("NAME", nargs="?", default="", help="name of a file")
    parser.add_argument("-i", "--include", action="store_true", help="the files of include/")
    parser.add_argument("-f", "--file", metavar="FILE", default="-", help="with --replace: take the text from a file")
    parser.add_argument("--with-token", action="store_true", help="with --get: write the file's token to stderr")
    parser.add_argument(
        "-t", "--token", help="change the file only if it is as this token says: as --with-token shows it, `new` if "
        "there must be none yet, `any` (default)"
    )  # fmt: skip
    json_output.option(parser)
    parser.set_defaults(method="list")
    return tool.run(parser, _body, argv)
