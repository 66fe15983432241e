"""``casemate backup``: incremental backups in a repository. Each verb is a function of its parsed command line.

``create`` and ``run`` have the daemon do the work, which alone may read volumes. ``schedule`` and ``unschedule`` speak
with the host (backup_schedule.py). All other verbs work on the repository themselves.
"""

from __future__ import annotations

import argparse
import os
import sys
from functools import partial

from casemate.backup.sizes import readable
from casemate.cli import json_output, passphrase, tool
from casemate.cli.restore_options import add_options
from casemate.client.qubes import Qubes
from casemate.wire import names
from casemate.wire.errors import CasemateError, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from casemate.backup.incremental.reader import IncrementalBackup
    from casemate.backup.incremental.repository import Repository
    from casemate.backup.incremental.retention import Keep
    from casemate.backup.reader import Backup

PROG = "casemate backup"


def _with_packages(body: tool.Body, args: argparse.Namespace, qubes: Qubes) -> int:
    """Run a verb with installed packages, which the other commands of ``casemate`` start faster without."""
    if sys.flags.no_site:
        import site

        site.main()
    return body(args, qubes)


def _repository(args: argparse.Namespace, qubes: Qubes, new: bool = False) -> Repository:
    from pathlib import Path

    from casemate.backup.incremental.repository import Repository

    place = Path(os.path.abspath(args.REPOSITORY))  # noqa: PTH100  # links stay as they were said
    state = qubes.transport.settings.state / "backup"
    if not new:
        Repository(place, b"", state).identity()  # before anybody types a passphrase
    return Repository(place, passphrase.asked(args.passphrase_file, new=new), state)


def _init(args: argparse.Namespace, qubes: Qubes) -> int:
    _repository(args, qubes, new=True).borg.init()
    sys.stderr.write(
        "The repository is made. Its key is in it, encrypted by the passphrase. Without both nothing can be restored.\n"
    )
    return 0


def _create(args: argparse.Namespace, qubes: Qubes) -> int:
    from casemate.backup.incremental.repository import Repository
    from casemate.backup.profile import Profile
    from casemate.cli import backing_up

    if args.profile is not None:
        if args.REPOSITORY or args.VMNAME or args.exclude or args.passphrase_file or args.save_profile:
            raise tool.UsageError("With --profile nothing else can be said about the backup")
        return backing_up.by_profile(args, qubes, str(names.argument(args.profile)))
    if args.REPOSITORY is None:
        raise tool.UsageError("Give --profile, or the directory of the repository")
    place = os.path.abspath(args.REPOSITORY)  # noqa: PTH100
    profile = Profile(
        destination_vm="dom0", destination_path=place, include=tuple(args.VMNAME) or None, exclude=tuple(args.exclude),
        repository=True, keep=_keep(args),
    )  # fmt: skip
    from pathlib import Path

    Repository(Path(place), b"", qubes.transport.settings.state / "backup").identity()
    return backing_up.described(args, qubes, profile, args.save_profile, new=False)


def _keep(args: argparse.Namespace) -> Keep:
    from casemate.backup.incremental.retention import RULES, keep_from

    return keep_from({rule: getattr(args, f"keep_{rule}") for rule in RULES}, "--keep-...")


def _list(args: argparse.Namespace, qubes: Qubes) -> int:
    from casemate.backup.incremental.repository import age
    from casemate.cli.table import table

    repository = _repository(args, qubes)
    listing = repository.listing()
    if args.BACKUP is None:
        if json_output.wanted(args):
            return json_output.write([{"id": one.id, "time": one.time, "qubes": one.qubes, "new_bytes": one.bytes}
                                      for one in listing.snapshots])  # fmt: skip
        rows = [(one.id, age(one), str(one.qubes), readable(one.bytes)) for one in listing.snapshots]
        sys.stdout.write(table([("BACKUP", "MADE", "QUBES", "NEW DATA"), *rows]))
        return 0
    from casemate.backup.incremental.reader import IncrementalBackup

    found = repository.find(listing, args.BACKUP)
    backup = IncrementalBackup(repository, repository.snapshot(found))
    lines, facts = [("NAME", "CLASS", "VOLUMES")], []
    for qube in backup.contents.qubes.values():
        sizes = {
            image.name: one.size
            for name, image in qube.images.items()
            if (one := backup.snapshot.volumes.get(f"{qube.path}{name}")) is not None
        }
        facts.append({"name": qube.name, "class": qube.klass, "volumes": sizes})
        volumes = ", ".join(f"{name} {readable(size)}" for name, size in sizes.items())
        lines.append((qube.name, qube.klass, volumes or "-"))
    if json_output.wanted(args):
        return json_output.write(facts)
    sys.stdout.write(table(lines))
    return 0


def _diff(args: argparse.Namespace, qubes: Qubes) -> int:
    from casemate.backup.incremental.compare import differences
    from casemate.backup.incremental.reader import IncrementalBackup

    repository = _repository(args, qubes)
    listing = repository.listing()
    with repository.held(shared=True):
        old, new = (
            IncrementalBackup(repository, repository.snapshot(repository.find(listing, wanted)))
            for wanted in (args.OLD, args.NEW)
        )
    for line in differences(old, new):
        sys.stdout.write(f"{printable(line, 500)}\n")
    return 0


def _verify(args: argparse.Namespace, qubes: Qubes) -> int:
    from casemate.cli.restoring import verify

    return _with_backup(args, qubes, lambda backup: verify(PROG, args, backup))


def _restore(args: argparse.Namespace, qubes: Qubes) -> int:
    from casemate.cli.restoring import restore_from

    return _with_backup(args, qubes, lambda backup: restore_from(PROG, args, backup, qubes))


def _open(args: argparse.Namespace, qubes: Qubes) -> int:
    from tempfile import TemporaryFile

    from casemate.cli.backup_open import fetch, show
    from casemate.cli.loop_device import check_possible
    from casemate.client.calling import Disposable

    check_possible()
    # The disposable first: what is wrong with its template is known before a volume has been read for minutes.
    with TemporaryFile(dir=qubes.transport.settings.state) as file, Disposable(qubes, args.dispvm) as name:
        _with_repository(args, qubes, lambda backup: fetch(args, backup, file.fileno()))
        return show(args, qubes, name, file.fileno())  # others may use the repository meanwhile


def _with_backup(args: argparse.Namespace, qubes: Qubes, use: Callable[[Backup | IncrementalBackup], int]) -> int:
    """The backup that a command line names, or the newest by its profile: then all words are names of qubes."""

    if args.profile is not None:
        from casemate.cli.backup_profile import newest_backup

        if args.backup or args.passphrase_file:
            raise tool.UsageError("With --profile neither --backup nor --passphrase-file can be given")
        args.VMNAME = [*([args.REPOSITORY] if args.REPOSITORY else []), *args.VMNAME]
        with newest_backup(qubes.transport.settings, str(names.argument(args.profile))) as backup:
            return use(backup)
    return _with_repository(args, qubes, use)


def _with_repository(args: argparse.Namespace, qubes: Qubes, use: Callable[[IncrementalBackup], int]) -> int:
    from casemate.backup.incremental.reader import IncrementalBackup

    if args.REPOSITORY is None:
        raise tool.UsageError("Give --profile, or the directory of the repository")
    repository = _repository(args, qubes)
    with repository.held(shared=True):
        found = repository.find(repository.listing(), args.backup)
        return use(IncrementalBackup(repository, repository.snapshot(found)))


def _prune(args: argparse.Namespace, qubes: Qubes) -> int:
    keep = _keep(args)
    if not keep:
        raise tool.UsageError("Say what is to be kept: --keep-last, --keep-daily, --keep-weekly ... with a number")
    repository = _repository(args, qubes)
    with repository.held():
        listing = repository.listing()
        doomed = repository.to_prune(listing, keep)
        for one in listing.snapshots:
            sys.stdout.write(f"{one.id} {'is removed' if one in doomed else 'is kept'}\n")
        sys.stdout.flush()
        if args.dry_run:
            return 0
        if doomed and not args.yes and not tool.confirmed("Remove these backups?", "Nothing was removed.\n"):
            return 0
        repository.prune(listing, doomed)
    return 0


def _check(args: argparse.Namespace, qubes: Qubes) -> int:
    from casemate.backup.incremental.check import check

    repository = _repository(args, qubes)
    with repository.held():
        found = check(repository, args.read_data, args.repair)
    for line in found.lines:
        sys.stdout.write(f"{printable(line, 500)}\n")
    sys.stdout.flush()
    if found.sound:
        return 0
    hint = "" if args.repair else f" Run {PROG} check --repair to take damaged data out, so that it is stored anew."
    tool.say_error(PROG, f"The repository is damaged.{hint}" if found.damage else "Not every backup is whole")
    return 1


def _schedule(args: argparse.Namespace, qubes: Qubes) -> int:
    from casemate.cli.backup_schedule import schedule

    return schedule(args, qubes)


def _unschedule(args: argparse.Namespace, qubes: Qubes) -> int:
    from casemate.cli.backup_schedule import unschedule

    return unschedule(args, qubes)


def _run(args: argparse.Namespace, qubes: Qubes) -> int:
    from casemate.cli.backup_schedule import run

    return run(args, qubes)


def add_to(commands: argparse._SubParsersAction[tool.Subparser]) -> None:
    """Add the command with its verbs to ``casemate``."""
    backup = commands.add_parser("backup", help="incremental backups in a repository")
    verbs = backup.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=tool.Subparser)

    def verb(name: str, body: tool.Body, text: str) -> tool.Subparser:
        made = verbs.add_parser(name, help=text)
        made.set_defaults(body=partial(_with_packages, body))
        made.add_argument("-p", "--passphrase-file", metavar="FILE", help=passphrase.FILE_HELP)
        optional = name in ("create", "verify", "restore")  # a profile may say it
        made.add_argument("REPOSITORY", nargs="?" if optional else None, help="directory of the repository")
        return made

    verb("init", _init, "make a repository in a new directory")
    create = verb("create", _create, "back qubes up; what has not changed is neither read nor stored")
    create.add_argument("VMNAME", nargs="*", help="qubes to be backed up (default: those with include_in_backups)")
    create.add_argument("-y", "--yes", action="store_true", help="do not ask")
    create.add_argument("-x", "--exclude", action="append", default=[], metavar="VMNAME", help="not this qube")
    create.add_argument("--profile", metavar="NAME", help="make the backup that this profile describes")
    create.add_argument("--save-profile", metavar="NAME", help="keep what is said here as a profile of this name")
    _add_rules(create)
    listed = verb("list", _list, "show the backups of a repository, or the qubes of one")
    listed.add_argument("BACKUP", nargs="?", help="a backup's id")
    json_output.option(listed)
    compared = verb("diff", _diff, "show what changed between two backups")
    compared.add_argument("OLD", help="id of the older backup")
    compared.add_argument("NEW", nargs="?", help="id of the newer one (default: the newest)")
    for name, body, text in (
        ("verify", _verify, "read qubes of a backup to their last byte; restore nothing"),
        ("restore", _restore, "restore qubes of a backup; 0 only when all that was asked for is whole"),
    ):
        one = verb(name, body, text)
        one.add_argument("VMNAME", nargs="*", help="only these qubes of the backup")
        one.add_argument("--backup", metavar="BACKUP", help="a backup's id (default: the newest)")
        one.add_argument(
            "--profile", metavar="NAME",
            help="the newest backup by this profile, in a repository or a file, with the passphrase that it names; "
            "all words are then names of qubes",
        )  # fmt: skip
        one.add_argument("--progress", action="store_true", help="tell how far it is, a line a second, for programs")
        json_output.option(one)
        if name == "restore":
            one.add_argument("-y", "--yes", action="store_true", help="do not ask")
            add_options(one)
        else:
            one.add_argument("-x", "--exclude", action="append", default=[], metavar="VMNAME", help="not this qube")
    opened = verb("open", _open, "look into a volume of a backup, read-only, in a disposable without a network")
    opened.add_argument("VMNAME", help="the qube whose volume it is")
    opened.add_argument(
        "COMMAND", nargs=argparse.REMAINDER,
        help="what to run in the disposable, with the volume as its directory (default: wait until Enter is pressed)",
    )  # fmt: skip
    opened.add_argument("--backup", metavar="BACKUP", help="a backup's id (default: the newest)")
    opened.add_argument("--volume", default="private", metavar="NAME", help="private (default) or root")
    opened.add_argument("--dispvm", default="", metavar="TEMPLATE", help="of this disposable template")
    pruned = verb("prune", _prune, "remove backups that no rule keeps, and give their room back")
    pruned.add_argument("-y", "--yes", action="store_true", help="do not ask")
    pruned.add_argument("-n", "--dry-run", action="store_true", help="only show what would be removed")
    _add_rules(pruned)
    checked = verb("check", _check, "find damage, and say which qubes of which backups it touches")
    checked.add_argument("--read-data", action="store_true", help="also read all data and compare every byte")
    checked.add_argument("--repair", action="store_true", help="take damaged data out, so that it is stored anew")

    _add_schedules(verbs)


def _add_schedules(verbs: argparse._SubParsersAction[tool.Subparser]) -> None:
    def verb(name: str, body: tool.Body, text: str, profile: str, optional: bool = False) -> tool.Subparser:
        made = verbs.add_parser(name, help=text)
        made.set_defaults(body=partial(_with_packages, body))
        made.add_argument("PROFILE", nargs="?" if optional else None, help=profile)
        return made

    planned = verb(
        "schedule", _schedule, "have the backup of a profile made again and again; or list the schedules",
        "name of a profile that has a passphrase (default: list what is scheduled)", optional=True,
    )  # fmt: skip
    planned.add_argument("WHEN", nargs="?", help="daily, weekly, hourly or a calendar expression of systemd")
    json_output.option(planned)
    ended = verb("unschedule", _unschedule, "remove a schedule", "name of the profile")
    for one in (planned, ended):
        one.add_argument("--root", default="/", help="directory to take for /, where units of systemd are")
    verb("run", _run, "make the backup of a profile, as its timer does", "name of the profile")


def _add_rules(parser: tool.Subparser) -> None:
    for rule, text in (
        ("last", "the last N backups"), ("daily", "the newest of each of the last N days"),
        ("weekly", "the newest of each of the last N weeks"), ("monthly", "the newest of each of the last N months"),
        ("yearly", "the newest of each of the last N years"),
    ):  # fmt: skip
        parser.add_argument(f"--keep-{rule}", metavar="N", default=0, type=_count, help=f"keep {text}")


def _count(text: str) -> int:
    try:
        return names.number(text, "number of backups", 0, 10_000)
    except CasemateError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
