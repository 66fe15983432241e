"""Tokens of the policy language: what a rule can write for source, target and redirection."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from casemate.wire import names
from casemate.wire.errors import ValueInvalidError, printable

ADMIN = "@adminvm"
DEFAULT = "@default"
HOST = "dom0"
DISPOSABLE = "@dispvm"
NIL_UUID = "uuid:00000000-0000-0000-0000-000000000000"


class Kind(StrEnum):
    """What a token stands for."""

    ALL = "*"
    ANY = "@anyvm"
    TYPE = "@type"
    TAG = "@tag"
    DISPOSABLE_TAG = "@dispvm:@tag"
    EXACT = "exact"


@dataclass(frozen=True, slots=True)
class Token:
    """A token.

    ``value`` is a class or a tag where the kind wants one; for EXACT it is a name, ``uuid:UUID``, ``@adminvm``,
    ``@default``, ``@dispvm`` or ``@dispvm:QUBE``.
    """

    kind: Kind
    value: str = ""

    def __str__(self) -> str:
        if self.kind is Kind.EXACT:
            return self.value
        return f"{self.kind.value}:{self.value}" if self.value else self.kind.value


def qube(text: str) -> str:
    """``NAME`` or ``uuid:UUID``; the admin qube in any spelling is ``@adminvm``."""
    if text in ("dom0", ADMIN, NIL_UUID):
        return ADMIN
    if text.startswith("uuid:"):
        return "uuid:" + names.uuid_text(text[5:])
    return names.qube_name(text)


def _bad(text: str, where: str) -> ValueInvalidError:
    return ValueInvalidError(f"{printable(text, 80)!r} cannot be a {where}")


def _exact(text: str) -> str | None:
    """A disposable, or a qube; None for other words that start with ``@`` or ``*``."""
    if text == DISPOSABLE:
        return text
    if text.startswith(DISPOSABLE + ":"):
        found = qube(text[len(DISPOSABLE) + 1 :])
        if found == ADMIN:
            raise _bad(text, "disposable")
        return f"{DISPOSABLE}:{found}"
    if text == ADMIN or not text.startswith(("@", "*")):
        return qube(text)
    return None


def _group(text: str) -> Token | None:
    if text == "*":
        return Token(Kind.ALL)
    if text == "@anyvm":
        return Token(Kind.ANY)
    if text.startswith("@type:"):
        value = text[6:]
        if not value.isascii() or not value.isalnum() or len(value) > 32:
            raise _bad(text, "class")
        return Token(Kind.TYPE, value)
    if text.startswith("@tag:"):
        return Token(Kind.TAG, names.tag_name(text[5:]))
    if text.startswith("@dispvm:@tag:"):
        return Token(Kind.DISPOSABLE_TAG, names.tag_name(text[13:]))
    return None


def source(text: str) -> Token:
    """A source. ``@dispvm:NAME`` is accepted and never matches, as in Qubes OS: disposables have names of their own."""
    found = _group(text)
    if found is None:
        exact = _exact(text)
        if exact is None or exact == DISPOSABLE:
            raise _bad(text, "source")
        found = Token(Kind.EXACT, exact)
    return found


def target(text: str) -> Token:
    """A target."""
    found = _group(text)
    if found is None:
        exact = DEFAULT if text == DEFAULT else _exact(text)
        if exact is None:
            raise _bad(text, "target")
        found = Token(Kind.EXACT, exact)
    return found


def redirect(text: str) -> str:
    """Where ``target=`` may send a call: a qube or a disposable."""
    exact = None if _group(text) is not None else _exact(text)
    if exact is None:
        raise _bad(text, "target=")
    return exact
