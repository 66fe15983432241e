"""Tokens of the policy language: what a rule can write for source, target and redirection."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from casemate.wire.errors import CasemateError, ValueInvalidError, printable
from casemate.wire.names import qube_name, uuid_text

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
    """``NAME`` or ``uuid:UUID``; the admin qube in any spelling is ``@adminvm``.

    As upstream's parser, this takes any word for a name. One that no qube can have (``1x``, ``a+b``) fits nothing, as
    the name of a qube that does not exist; ``impossible`` tells of such names. Letters that are not ASCII are refused,
    because a name with letters that look alike reads as if the rule applied.
    """
    if text in ("dom0", ADMIN, NIL_UUID):
        return ADMIN
    if not text.isascii() or not text.isprintable():
        raise _bad(text, "name of a qube")
    return text


def impossible(token: Token) -> bool:
    """Whether a token is the name or UUID of a qube that there cannot be, so that its rule never decides."""
    if token.kind is not Kind.EXACT:
        return False
    name = token.value.removeprefix(DISPOSABLE + ":")
    if name.startswith("@"):
        return False
    try:
        if name.startswith("uuid:"):
            uuid_text(name[5:])
        else:
            qube_name(name)
    except CasemateError:
        return True
    return False


def _bad(text: str, where: str) -> ValueInvalidError:
    return ValueInvalidError(f"{printable(text, 80)!r} cannot be a {where}")


def _exact(text: str) -> str | None:
    """A disposable, or a qube; None for other words that start with ``@`` or ``*``."""
    if text == DISPOSABLE:
        return text
    if text.startswith(DISPOSABLE + ":"):
        name = text[len(DISPOSABLE) + 1 :]
        if not name or name.startswith("@"):
            raise _bad(text, "disposable")
        # dom0 keeps its name here: it is no template of disposables, so the rule never fits.
        return f"{DISPOSABLE}:{name if qube(name) == ADMIN else qube(name)}"
    if text == ADMIN or not text.startswith("@") and text not in ("", "*"):
        return qube(text)
    return None


def _group(text: str) -> Token | None:
    if text == "*":
        return Token(Kind.ALL)
    if text == "@anyvm":
        return Token(Kind.ANY)
    for kind in (Kind.TYPE, Kind.TAG, Kind.DISPOSABLE_TAG):
        if text.startswith(kind.value + ":"):
            value = text[len(kind.value) + 1 :]
            if not value or value.startswith("@") or not value.isascii() or not value.isprintable():
                raise _bad(text, "class or tag")
            return Token(kind, value)
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
