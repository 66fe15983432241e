"""Parses the policy language: lines to rules. One line that is not understood makes the whole policy unusable."""

from __future__ import annotations

import string
from collections.abc import Callable, Iterator
from itertools import count
from typing import TypeVar

from casemate.qrexec import tokens
from casemate.qrexec.rules import Action, Rule
from casemate.wire.errors import CasemateError, PolicyError, printable

MAX_DEPTH = 8
"""Limit of calls: depth of includes in the policy."""
MAX_RULES = 200_000
"""Limit of calls: rules of the policy. Files that include others several times could make any number of rules."""
_ACTIONS = {action.value: action for action in Action}
_PARAMETERS = {
    Action.ALLOW: frozenset({"target", "user", "notify", "autostart"}),
    Action.ASK: frozenset({"target", "default_target", "user", "notify", "autostart"}),
    Action.DENY: frozenset({"notify"}),
}


_USER_LETTERS = string.ascii_letters + string.digits + "._-"
_CALL_LETTERS = _USER_LETTERS
"""Characters that str.strip() leaves nothing of in a service's name. How long a name may be is not checked: a call
with a longer one than is allowed never comes, so a rule for it never fits."""


class Includes:
    """Where included text comes from; each method returns (name for messages, text) of what is asked for."""

    def file(self, path: str) -> tuple[str, str]:
        """One file."""
        raise PolicyError(f"cannot include {printable(path, 80)!r} here")

    def directory(self, path: str) -> list[tuple[str, str]]:
        """The ``*.policy`` files of a directory, sorted."""
        raise PolicyError(f"cannot include {printable(path, 80)!r} here")

    def old(self) -> list[tuple[str, str, str]]:
        """The files of the form that Qubes OS 4.0 had, in any order: (SERVICE or SERVICE+ARGUMENT, name, text)."""
        raise PolicyError("!compat-4.0 cannot be used here")


class Parser:
    """Parses files one after the other; ``rules`` are all of them in order."""

    def __init__(self, includes: Includes | None = None) -> None:
        self.rules: list[Rule] = []
        self._includes = includes if includes is not None else Includes()
        self._order = count()
        self._open: list[str] = []
        self._sources: dict[str, tokens.Token] = {}
        self._targets: dict[str, tokens.Token] = {}
        self._found: list[str] | None = None
        self._services: dict[tuple[str, str], tuple[str | None, str | None]] = {}

    def parse(self, name: str, text: str) -> None:
        """Add the rules of a file; PolicyError names the file, the line and what is wrong with it."""
        self._lines(name, text, self._line)

    def check(self, name: str, text: str, service: tuple[str, str] | None = None) -> list[str]:
        """What is wrong with a file, all of it; ``service`` and argument for a file of the old form."""
        self._found = []
        self._lines(name, text, self._line if service is None else self._old_line(*service))
        found, self._found = self._found, None
        return found

    def _lines(self, name: str, text: str, handle: Callable[[str, int, str], None]) -> None:
        self._open.append(name)
        try:
            # A carriage return alone ends a line too, as for upstream, so that no rule hides behind a comment.
            for number, raw in enumerate(text.replace("\r\n", "\n").replace("\r", "\n").split("\n"), 1):
                line = raw.strip()
                if not line or line.startswith("#"):
                    continue
                try:
                    handle(name, number, line)
                except CasemateError as error:
                    # An error in an included file names its own place already.
                    text = str(error) if isinstance(error, _Placed) else f"{name}:{number}: {error}"
                    if self._found is None or len(self._open) > 1:
                        raise PolicyError(text) from None
                    self._found.append(text)
        finally:
            self._open.pop()

    def _line(self, name: str, number: int, line: str) -> None:
        if line.startswith("!"):
            self._directive(name, number, line)
            return
        words = line.split()
        if len(words) < 5:
            raise PolicyError("a rule is: SERVICE ARGUMENT SOURCE TARGET ACTION [KEY=VALUE ...]")
        self._rule(name, number, words)

    def _directive(self, name: str, number: int, line: str) -> None:
        word, *args = line.split()
        if word == "!include" and len(args) == 1:
            self._included([self._includes.file(args[0])], self._line)
        elif word == "!include-dir" and len(args) == 1:
            self._included(self._includes.directory(args[0]), self._line)
        elif word == "!include-service" and len(args) == 3:
            service, argument = args[:2]
            _service((service, argument))
            self._included([self._includes.file(args[2])], self._old_line(service, argument))
        elif word == "!compat-4.0" and not args:
            self._compat(name, number)
        else:
            raise PolicyError(f"not a directive, or not its arguments: {printable(line, 80)!r}")

    def _compat(self, name: str, number: int) -> None:
        """Add the rules of the old files, sorted by service.

        A file for one argument comes before the one for all arguments. What it does not mention is denied, because
        Qubes OS 4.0 read the more specific file alone.
        """
        files = []
        for call, shown, text in self._includes.old():
            service, plus, argument = call.partition("+")
            files.append((service, not plus, argument, shown, text))
        for service, every, argument, shown, text in sorted(files):
            words = (service, "*" if every else f"+{argument}")
            self._included([(shown, text)], self._old_line(*words))
            if not every:
                for target in ("@anyvm", "@adminvm"):
                    self._rule(name, number, [*words, "@anyvm", target, "deny"])

    def _included(self, files: list[tuple[str, str]], handle: Callable[[str, int, str], None]) -> None:
        for name, text in files:
            if name in self._open:
                raise PolicyError(f"{name} would be included from itself")
            if len(self._open) >= MAX_DEPTH:
                raise PolicyError(f"{name} would be more than {MAX_DEPTH} files deep")
            try:
                self._lines(name, text, handle)
            except PolicyError as error:
                raise _Placed(str(error)) from None

    def _old_line(self, service: str, argument: str) -> Callable[[str, int, str], None]:
        """Handler for lines of the old form: SOURCE TARGET ACTION[,KEY=VALUE...], ``$`` for ``@``."""

        def handle(name: str, number: int, line: str) -> None:
            words = line.replace("$include:", "!include ").replace("$", "@").replace(",", " ").split()
            if words[:1] == ["!include"] and len(words) == 2:
                self._included([self._includes.file(words[1])], handle)
                return
            if not words or words[0].startswith("!"):
                raise PolicyError(f"the only directive of this file is !include PATH: {printable(line, 80)!r}")
            if len(words) < 3:
                raise PolicyError("a rule of this file is: SOURCE TARGET ACTION[,KEY=VALUE...]")
            self._rule(name, number, [service, argument, *words])

        return handle

    def _rule(self, name: str, number: int, words: list[str]) -> None:
        # Large policies repeat the same words, so each is checked once.
        service, argument = _known(self._services, (words[0], words[1]), _service)
        source = _known(self._sources, words[2], tokens.source)
        target = _known(self._targets, words[3], tokens.target)
        action = _ACTIONS.get(words[4])
        if action is None:
            raise PolicyError(f"{printable(words[4], 40)!r} is not allow, ask or deny")
        given = dict(_parameters(words[5:], action)) if len(words) > 5 else {}
        redirect = tokens.redirect(given["target"]) if "target" in given else None
        if action is Action.ALLOW and redirect is None and target.value == tokens.DEFAULT:
            raise PolicyError("allow for @default needs target=")
        if len(self.rules) >= MAX_RULES:
            raise PolicyError(f"more than {MAX_RULES} rules")
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
                user=_user(given.get("user", "")),
                notify=_flag(given.get("notify", "yes" if action is Action.DENY else "no"), "notify"),
                autostart=_flag(given.get("autostart", "yes"), "autostart"),
            )
        )


class _Placed(PolicyError):
    """An error that names its place."""


_Word = TypeVar("_Word")
_Value = TypeVar("_Value")


def _known(known: dict[_Word, _Value], word: _Word, parse: Callable[[_Word], _Value]) -> _Value:
    found = known.get(word)
    if found is None:
        found = known[word] = parse(word)
    return found


def _service(words: tuple[str, str]) -> tuple[str | None, str | None]:
    service, argument = words
    name = None if service == "*" else service
    if name is not None and (not name or name.strip(_CALL_LETTERS)):
        raise PolicyError(f"a service has letters, digits and ._- alone, not {printable(name, 80)!r}")
    if argument == "*":
        return name, None
    if name is None:
        raise PolicyError("the argument must be * when the service is *")
    if not argument.startswith("+"):
        raise PolicyError(f"the argument is * or starts with +, not {printable(argument, 40)!r}")
    if argument.strip(_CALL_LETTERS + "+@:"):
        raise PolicyError(f"an argument has letters, digits and ._-+@: alone, not {printable(argument, 80)!r}")
    return name, argument[1:]


def _user(text: str) -> str | None:
    """The user of a rule; None for the target's default user, which is also meant by ``DEFAULT`` and by nothing."""
    if text in ("", "DEFAULT"):
        return None
    if text.startswith("-") or text.strip(_USER_LETTERS):
        raise PolicyError(f"user= is a name of letters, digits and ._-, not {printable(text, 80)!r}")
    return text


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
