"""The policy's language: lines to rules. Any line that is not understood makes the whole policy unusable."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count

from casemate.qrexec import tokens
from casemate.qrexec.rules import Action, Rule
from casemate.wire import names
from casemate.wire.errors import CasemateError, PolicyError, printable

MAX_DEPTH = 8
_PARAMETERS = {
    Action.ALLOW: frozenset({"target", "user", "notify", "autostart"}),
    Action.ASK: frozenset({"target", "default_target", "user", "notify", "autostart"}),
    Action.DENY: frozenset({"notify"}),
}


class Includes:
    """Where included text comes from; each method returns (name for messages, text) of what is asked for."""

    def file(self, path: str) -> tuple[str, str]:
        """One file."""
        raise PolicyError(f"cannot include {printable(path, 80)!r} here")

    def directory(self, path: str) -> list[tuple[str, str]]:
        """The ``*.policy`` files of a directory, sorted."""
        raise PolicyError(f"cannot include {printable(path, 80)!r} here")


class Parser:
    """Parses files one after the other; ``rules`` are all of them in order."""

    def __init__(self, includes: Includes | None = None) -> None:
        self.rules: list[Rule] = []
        self._includes = includes if includes is not None else Includes()
        self._order = count()
        self._open: list[str] = []

    def parse(self, name: str, text: str) -> None:
        """Add the rules of a file; PolicyError names the file, the line and what is wrong with it."""
        self._lines(name, text, self._line)

    def _lines(self, name: str, text: str, handle: Callable[[str, int, str], None]) -> None:
        if name in self._open or len(self._open) >= MAX_DEPTH:
            raise PolicyError(f"{name}: included from itself, or too deep")
        self._open.append(name)
        for number, raw in enumerate(text.split("\n"), 1):
            line = raw.strip(" \t\r")
            if not line or line.startswith("#"):
                continue
            try:
                handle(name, number, line)
            except PolicyError as error:
                # An error in an included file names its own place already.
                raise PolicyError(str(error) if _placed(error) else f"{name}:{number}: {error}") from None
            except CasemateError as error:
                raise PolicyError(f"{name}:{number}: {error}") from None
        self._open.pop()

    def _line(self, name: str, number: int, line: str) -> None:
        if line.startswith("!"):
            self._directive(name, line)
            return
        words = line.split()
        if len(words) < 5:
            raise PolicyError("a rule is: SERVICE ARGUMENT SOURCE TARGET ACTION [KEY=VALUE ...]")
        self._rule(name, number, words)

    def _directive(self, name: str, line: str) -> None:
        word, *args = line.split()
        if word == "!include" and len(args) == 1:
            self._included([self._includes.file(args[0])], self._line)
        elif word == "!include-dir" and len(args) == 1:
            self._included(self._includes.directory(args[0]), self._line)
        elif word == "!include-service" and len(args) == 3:
            service, argument = args[:2]
            _service(service, argument)
            self._included([self._includes.file(args[2])], self._old_line(service, argument))
        elif word == "!compat-4.0":
            raise PolicyError("!compat-4.0 is not supported: write the old files' rules in the new form here")
        else:
            raise PolicyError(f"not a directive, or not its arguments: {printable(line, 80)!r}")

    def _included(self, files: list[tuple[str, str]], handle: Callable[[str, int, str], None]) -> None:
        for name, text in files:
            try:
                self._lines(name, text, handle)
            except PolicyError as error:
                raise _Placed(str(error)) from None

    def _old_line(self, service: str, argument: str) -> Callable[[str, int, str], None]:
        """Handler for lines of the old form: SOURCE TARGET ACTION[,KEY=VALUE...], ``$`` for ``@``."""

        def handle(name: str, number: int, line: str) -> None:
            line = line.replace("$", "@")
            if line.startswith("@include:"):
                self._included([self._includes.file(line[9:])], handle)
                return
            words = line.replace(",", " ").split()
            if len(words) < 3:
                raise PolicyError("a rule of this file is: SOURCE TARGET ACTION[,KEY=VALUE...]")
            self._rule(name, number, [service, argument, *words])

        return handle

    def _rule(self, name: str, number: int, words: list[str]) -> None:
        service, argument = _service(words[0], words[1])
        source, target = tokens.source(words[2]), tokens.target(words[3])
        try:
            action = Action(words[4])
        except ValueError:
            raise PolicyError(f"{printable(words[4], 40)!r} is not allow, ask or deny") from None
        given = dict(_parameters(words[5:], action))
        redirect = tokens.redirect(given["target"]) if "target" in given else None
        if action is Action.ALLOW and target == tokens.Token(tokens.Kind.EXACT, tokens.DEFAULT) and redirect is None:
            raise PolicyError("allow for @default needs target=")
        self.rules.append(
            Rule(
                order=next(self._order),
                file=name,
                line=number,
                service=service,
                argument=argument,
                source=source,
                target=target,
                action=action,
                redirect=redirect,
                default_target=tokens.redirect(given["default_target"]) if "default_target" in given else None,
                user=names.user_name(given["user"]) if "user" in given else None,
                notify=_flag(given.get("notify", "yes" if action is Action.DENY else "no"), "notify"),
                autostart=_flag(given.get("autostart", "yes"), "autostart"),
            )
        )


class _Placed(PolicyError):
    """An error that names its place."""


def _placed(error: PolicyError) -> bool:
    return isinstance(error, _Placed)


def _service(service: str, argument: str) -> tuple[str | None, str | None]:
    name = None if service == "*" else str(names.service_name(service))
    if argument == "*":
        return name, None
    if name is None:
        raise PolicyError("the argument must be * when the service is *")
    if not argument.startswith("+"):
        raise PolicyError(f"the argument is * or starts with +, not {printable(argument, 40)!r}")
    return name, str(names.argument(argument[1:]))


def _parameters(words: list[str], action: Action) -> Iterator[tuple[str, str]]:
    seen = set()
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or key not in _PARAMETERS[action]:
            raise PolicyError(f"{action} does not take {printable(word, 60)!r}")
        if key in seen:
            raise PolicyError(f"{key}= given twice")
        seen.add(key)
        yield key, value


def _flag(value: str, key: str) -> bool:
    if value not in ("yes", "no"):
        raise PolicyError(f"{key}= is yes or no, not {printable(value, 40)!r}")
    return value == "yes"
