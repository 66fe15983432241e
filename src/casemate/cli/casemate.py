"""``casemate``: what belongs to no single qube: the tour, the host's status, templates, the policy, calls, clean-up."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from casemate.cli import (
    backup,
    colour,
    fork,
    interop,
    json_output,
    net,
    setup,
    snapshot,
    store_tool,
    template,
    tool,
    uninstall,
    warm,
    web,
)
from casemate.client.qubes import Qubes
from casemate.settings import load
from casemate.wire.errors import CasemateError, DisconnectedError, printable

PROG = "casemate"


def _status(args: argparse.Namespace, qubes: Qubes) -> int:
    if qubes.get(None, "default_kernel").text:
        qubes.call("admin.casemate.Probe")
    status = qubes.status()
    from casemate.cli.silence import unanswering

    silent = unanswering(qubes)
    if silent:
        status["no answer"] = "; ".join(f"{name}: {why or 'its agent gives no sign of life'}" for name, why in silent)
    if json_output.wanted(args):
        from casemate.cli import backup_schedule

        settings = qubes.transport.settings
        scheduled = backup_schedule.status_lines(settings)
        return json_output.write({**status, "origin": settings.origin, "scheduled": scheduled})
    for key, value in status.items():
        if key == "protections":
            continue
        shown = f"{value} ({qubes.transport.settings.origin})" if key == "state" else str(value)
        print(f"{key:<14} {printable(shown)}")
    if missing := setup.missing(qubes):
        print(f"{'missing':<14} {printable(', '.join(missing))}: casemate setup makes them")
    from casemate.cli import backup_schedule

    if scheduled := backup_schedule.status_lines(qubes.transport.settings):
        print("\nScheduled backups")
        for line in scheduled:
            print(f"  {line}")
    protections = status.get("protections", [])
    missing = [p for p in protections if not p["present"]]
    print(f"\nProtections: {len(protections) - len(missing)} present, {len(missing)} missing on this host")
    for one in protections:
        if args.verbose or not one["present"]:
            word = f"{'has' if one['present'] else 'LACKS':<5}"
            if colour.wanted(sys.stdout):
                word = colour.paint(word, "good" if one["present"] else "warn")
            print(f"  {word} {one['id']:<4} {printable(one['what'])}")
            if one["why"]:
                print(f"             {printable(one['why'])}")
    return 0


def _qubesdb(args: argparse.Namespace, _qubes: Qubes) -> int:
    from casemate.qdb.client import QubesDB
    from casemate.wire.names import qube_name

    try:
        database = QubesDB(load().database_socket(qube_name(args.VMNAME)))
    except DisconnectedError as error:
        raise CasemateError(f"{args.VMNAME} does not run, so it has no database ({error})") from None
    with database:
        if args.command == "read":
            value = database.read(args.path)
            if value is None:
                return 2
            print(printable(value.decode("latin-1"), 4096))
        elif args.command == "write":
            database.write(args.path, (args.value or "").encode())
        elif args.command == "list":
            print("\n".join(database.list(args.path)))
        else:
            database.watch(args.path)
            print(database.read_watch(), flush=True)
    return 0


def _store(args: argparse.Namespace, _qubes: Qubes) -> int:
    return store_tool.run(args.command, args.name)


def _clean(args: argparse.Namespace, _qubes: Qubes) -> int:
    from casemate.cli.clean import clean_state
    from casemate.cli.tour import tour_settings

    settings = tour_settings()
    clean_state(settings)
    print(f"Nothing of the tour is left in {settings.state}")
    if args.all:
        settings = load()
        clean_state(settings)
        print(f"All qubes in {settings.state} are gone")
    return 0


def _prompt(_args: argparse.Namespace, qubes: Qubes) -> int:
    from casemate.cli.prompt import run

    return run(qubes)


def _trace(args: argparse.Namespace, qubes: Qubes) -> int:
    from casemate.cli.trace import run

    return run(qubes, args.VMNAME, args.json)


def _explain(args: argparse.Namespace, qubes: Qubes) -> int:
    from casemate.cli.policy_explain import run

    return run(qubes, args.SOURCE, args.SERVICE, args.TARGET, json_output.wanted(args))


def _support_bundle(args: argparse.Namespace, qubes: Qubes) -> int:
    from casemate.cli.support_bundle import run

    return run(args, qubes)


def _completion(args: argparse.Namespace, _qubes: Qubes) -> int:
    from casemate.cli.completion import script

    print(script(args.SHELL), end="")
    return 0


def _tour(_args: argparse.Namespace, _qubes: Qubes) -> int:
    from casemate.cli.tour import main as tour

    return tour()


def make_parser() -> tool.Parser:
    """What the command line may be; ``body`` is set by each command."""
    parser = tool.Parser(PROG, "Look after Casemate itself.")
    commands = parser.add_subparsers(dest="what", metavar="COMMAND", required=True, parser_class=tool.Subparser)
    commands.add_parser("tour", help="show the main job on real virtual machines").set_defaults(body=_tour)
    status = commands.add_parser("status", help="show what this host can do and which protections it lacks")
    json_output.option(status)
    status.set_defaults(body=_status)
    template.add_to(commands)
    warm.add_to(commands)
    fork.add_to(commands)
    snapshot.add_to(commands)
    database = commands.add_parser("qubesdb", help="read, write, list or watch the database of a running qube")
    database.add_argument("VMNAME")
    database.add_argument("command", choices=("read", "write", "list", "watch"))
    database.add_argument("path", nargs="?", default="/")
    database.add_argument("value", nargs="?")
    database.set_defaults(body=_qubesdb)
    store = commands.add_parser("store", help="check the collection's file, list its earlier saves, restore one")
    verbs = store.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=tool.Subparser)
    for verb, text in store_tool.COMMANDS.items():
        one = verbs.add_parser(verb, help=text)
        if verb == "restore":
            one.add_argument("name", nargs="?", help="as history names it (default: the newest that is sound)")
    store.set_defaults(body=_store, name=None)
    policy = commands.add_parser("policy", help="explain what the policy says").add_subparsers(
        dest="command", metavar="COMMAND", required=True, parser_class=tool.Subparser
    )
    why = policy.add_parser("explain", help="which rule decides about a call, and what would change that")
    why.add_argument("SOURCE", help="the qube that calls")
    why.add_argument("SERVICE", help="SERVICE or SERVICE+ARGUMENT")
    why.add_argument("TARGET", nargs="?", default="", help="the target that it asks for (default: none)")
    json_output.option(why)
    why.set_defaults(body=_explain)
    commands.add_parser("prompt", help="ask on this terminal about calls for which the policy says ask").set_defaults(
        body=_prompt
    )
    trace = commands.add_parser("trace", help="show calls while they happen, each step with its time")
    trace.add_argument("VMNAME", nargs="?", help="only calls that concern this qube")
    trace.add_argument("--json", action="store_true", help="a line of JSON for each step")
    trace.set_defaults(body=_trace)
    setup.add_to(commands)
    uninstall.add_to(commands)
    net.add_to(commands)
    backup.add_to(commands)
    interop.add_to(commands)
    bundle = commands.add_parser("support-bundle", help="gather what a bug report needs, without what is private")
    bundle.add_argument("-o", "--output", metavar="FILE", help="where to write it (default: a name with the time)")
    bundle.add_argument("-y", "--yes", action="store_true", help="do not ask")
    bundle.set_defaults(body=_support_bundle)
    completion = commands.add_parser("completion", help="write the completion of all tools for a shell")
    completion.add_argument("SHELL", choices=("bash", "zsh", "fish"))
    completion.set_defaults(body=_completion)
    web.add_to(commands)
    clean = commands.add_parser("clean", help="end and remove what the tour has made")
    clean.add_argument("--all", action="store_true", help="remove also all qubes of this user, with their data")
    clean.set_defaults(body=_clean)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0; 1 for what went wrong; 2 for a wrong command line or a key that is not there."""
    return tool.run(make_parser(), lambda args, qubes: int(args.body(args, qubes)), argv)
