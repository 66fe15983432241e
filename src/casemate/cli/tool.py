"""What all tools share: their parser, the names of qubes on the command line, errors and exit statuses."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Collection, Sequence

from casemate.cli import standard_streams
from casemate.client.qubes import Qubes
from casemate.wire.admin import ADMIN, ListedQube
from casemate.wire.errors import CasemateError, NoSuchPropertyError, NotFoundError, PoolNotFoundError, printable
from casemate.wire.names import foreign

USAGE = 2
"""Exit status where the command line is wrong, or names a qube that does not exist."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TextIO

Body = Callable[[argparse.Namespace, Qubes], int]


class UsageError(CasemateError):
    """The command line asks for something impossible."""

    exit_status = USAGE


class _Formatter(argparse.HelpFormatter):
    """Knows the terminal's width: argparse would import shutil for it, at every argument of every tool."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=_width())

    def _format_action_invocation(self, action: argparse.Action) -> str:
        """``-o, --option VALUE``, as argparse writes it since Python 3.13, on every version: pages are compared."""
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        value = self._format_args(action, self._get_default_metavar_for_optional(action))
        return f"{', '.join(action.option_strings)} {value}"

    def add_argument(self, action: argparse.Action) -> None:
        """Leave room for the names of commands with their indent, as argparse does since Python 3.13."""
        super().add_argument(action)
        if action.help is not argparse.SUPPRESS:
            for command in self._iter_indented_subactions(action):
                length = len(self._format_action_invocation(command)) + self._current_indent
                self._action_max_length = max(self._action_max_length, length)


def _width() -> int:
    """As shutil finds it: ``COLUMNS``, else the terminal's, else 80; two less, as argparse has it."""
    text = os.environ.get("COLUMNS", "")
    columns = int(text) if text.isascii() and text.isdecimal() else 0
    if not columns:
        try:
            columns = os.get_terminal_size(sys.__stdout__.fileno()).columns if sys.__stdout__ else 0
        except (OSError, ValueError):
            pass
    return (columns or 80) - 2


class Subparser(argparse.ArgumentParser):
    """The parser of one command of a tool that has several.

    The options that every tool has may also stand after the command (``qvm-tags work list -v``), as in upstream's
    tools. They have no default here: it would take back what was said before the command.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=_Formatter, **options)
        hidden = argparse.SUPPRESS
        self.add_argument("-v", "--verbose", action="count", default=hidden, help=hidden)
        self.add_argument("-q", "--quiet", action="store_true", default=hidden, help=hidden)
        self.add_argument("--version", action=_Version, help=hidden)
        self.add_argument("--force-root", action="store_true", default=hidden, help=hidden)

    def many_qubes(self) -> None:
        """Take names of qubes, or ``--all`` with exceptions, after the command; ``chosen`` reads them."""
        _many_qubes(self)


class Parser(argparse.ArgumentParser):
    """A parser with the options that every tool has."""

    def __init__(self, prog: str, description: str, epilog: str | None = None) -> None:
        super().__init__(prog=prog, description=description, epilog=epilog, formatter_class=_Formatter)
        self.add_argument("-v", "--verbose", action="count", default=0, help="say more")
        self.add_argument("-q", "--quiet", action="store_true", help="say less")
        self.add_argument("--version", action=_Version, help="show the version and exit")
        self.add_argument("--force-root", action="store_true", help=argparse.SUPPRESS)
        self.add_argument("--state", action=_State, metavar="DIR", help=argparse.SUPPRESS)

    def one_qube(self) -> None:
        """Take the name of one qube."""
        self.add_argument("VMNAME", help="name of the qube")

    def many_qubes(self) -> None:
        """Take names of qubes, or ``--all`` with exceptions; ``choose`` reads them."""
        _many_qubes(self)


def _many_qubes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("VMNAME", nargs="*", help="names of qubes; patterns with *, ? and [...] too")
    parser.add_argument("--all", action="store_true", help="all qubes except dom0")
    parser.add_argument("--exclude", action="append", default=[], metavar="VMNAME", help="not this one of --all")


class _State(argparse.Action):
    """``--state DIR``: the same as ``CASEMATE_STATE=DIR``, for this tool and the programs that it starts."""

    def __init__(self, option_strings: Sequence[str], dest: str, metavar: str | None = None, help: str = "") -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=1, default=argparse.SUPPRESS, metavar=metavar,
                         help=help)  # fmt: skip

    def __call__(self, parser: argparse.ArgumentParser, _args: object, value: Any, option: str | None = None) -> None:
        os.environ["CASEMATE_STATE"] = value[0]
        os.environ.pop("CASEMATE_RUN", None)  # that of another state, which the option overrides


class _Version(argparse.Action):
    """Shows the version; it is looked up only then."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str | None = None) -> None:
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        import casemate

        sys.stdout.write(f"{parser.prog} {getattr(casemate, '__version__', '0')}\n")
        parser.exit()


class Ignored(argparse.Action):
    """An option of upstream's tool that can do nothing here: taken, so that scripts go on, and said on stderr."""

    def __init__(
        self, option_strings: Sequence[str], dest: str, why: str, nargs: int | None = 0, help: str = ""
    ) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=nargs, default=argparse.SUPPRESS,
                         help=help or argparse.SUPPRESS)  # fmt: skip
        self._why = why

    def __call__(
        self, parser: argparse.ArgumentParser, _args: object, _value: object, option: str | None = None
    ) -> None:
        sys.stderr.write(f"{parser.prog}: {option} does nothing here: {self._why}\n")


def run(parser: argparse.ArgumentParser, body: Body, argv: Sequence[str] | None) -> int:
    """Parse, carry out, and turn what went wrong into a message and an exit status."""
    args = argparse.Namespace()
    try:
        args = parser.parse_args(argv)
        status = body(args, Qubes())
        sys.stdout.flush()
        return status
    except SystemExit as stop:  # from the parser
        return stop.code if isinstance(stop.code, int) else 1
    except (NotFoundError, PoolNotFoundError) as error:
        say_error(parser.prog, error)
        return USAGE if _is_argument(args, error) else error.exit_status
    except NoSuchPropertyError as error:
        say_error(parser.prog, error)
        return USAGE
    except CasemateError as error:
        say_error(parser.prog, error)
        return error.exit_status
    except UnicodeEncodeError as error:
        # A word that a protocol wants in ASCII, and that nothing has looked at before.
        typed = error.object[error.start : error.end]
        say_error(parser.prog, f"Only ASCII characters are possible here, not {foreign(typed)}")
        return USAGE
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        standard_streams.discard()  # the reader of our output has gone
        return 141
    except OSError as error:
        standard_streams.discard()
        standard_streams.complain(parser.prog, error)
        return standard_streams.LOST


def _is_argument(args: argparse.Namespace, error: CasemateError) -> bool:
    """Whether what does not exist is an argument of its own, not the value of an option or property.

    Upstream's parsers look such arguments up themselves and end with 2; a value is refused by the daemon, with 1.
    """
    words: list[str] = []
    for name, found in vars(args).items():
        if name.isupper():  # what is not an option has a name in capitals in our parsers
            words += found if isinstance(found, list) else [found] if isinstance(found, str) else []
    return any(f"'{printable(word)}'" in str(error) for word in words)


def say(prog: str, text: str) -> None:
    """A line on standard error that is no error; control characters are shown."""
    sys.stderr.write(f"{prog}: {printable(text, 2000)}\n")


def say_error(prog: str, error: object) -> None:
    """A message on standard error; control characters are shown, not sent to the terminal."""
    from casemate.cli import colour  # here: most tools succeed

    lines = str(error).split("\n")
    word = colour.paint("error:", "bad") if colour.wanted(sys.stderr) else "error:"
    try:
        sys.stderr.write(f"{prog}: {word} " + "\n".join(printable(line, 2000) for line in lines) + "\n")
    except OSError:
        pass  # it is full, or its reader has gone; the exit status says it all the same


def confirmed(question: str, otherwise: str, stream: TextIO | None = None) -> bool:
    """Ask a person, on standard output or ``stream``; ``otherwise`` is said on standard error when it is not a yes."""
    out = sys.stdout if stream is None else stream
    out.write(f"{question} [y/N] ")
    out.flush()
    if sys.stdin.readline().strip().lower() in ("y", "yes"):
        return True
    sys.stderr.write(otherwise)
    return False


def choose(args: argparse.Namespace, listed: list[ListedQube]) -> list[ListedQube]:
    """The qubes that the command line means, in its order; raises UsageError for one that does not exist."""
    by_name = {qube.name: qube for qube in listed}
    if getattr(args, "all", False):
        if args.VMNAME:
            raise UsageError("Give names of qubes or --all, not both")
        _require(args.exclude, by_name)
        return [qube for qube in listed if qube.name != ADMIN and qube.name not in args.exclude]
    if getattr(args, "exclude", None):
        raise UsageError("--exclude can only be used with --all")
    if not args.VMNAME:
        raise UsageError("Give the name of a qube, or --all")
    return [by_name[name] for name in named(args.VMNAME, by_name)]


def named(words: Sequence[str], known: Collection[str]) -> list[str]:
    """The names among ``known`` that words of the command line mean, each once, in the order of the words.

    A word with ``*``, ``?`` or ``[`` is a pattern for names (no name of a qube has these characters); one that fits
    none is said on standard error and is no error, so that ``qvm-shutdown 'disp*'`` can be repeated. UsageError for
    a plain word that is no name.
    """
    found: dict[str, None] = {}
    for word in words:
        if any(mark in word for mark in "*?["):
            from fnmatch import fnmatchcase  # imports more than the tools otherwise need

            fitting = [name for name in known if fnmatchcase(name, word)]
            if not fitting:
                sys.stderr.write(f"no qube fits {printable(word)!r}\n")
            found.update(dict.fromkeys(fitting))
        else:
            _require([word], known)
            found[word] = None
    return list(found)


def _require(names: Sequence[str], known: Collection[str]) -> None:
    for name in names:
        if name not in known:
            raise UsageError(f"no such domain: {name!r}")


def each(prog: str, names: Sequence[str], action: Callable[[str], object]) -> int:
    """Do something to each qube; a failure is reported, and the others get their turn."""
    status = 0
    for name in names:
        try:
            action(name)
        except CasemateError as error:
            say_error(prog, error)
            status = 1
    return status
