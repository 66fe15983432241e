"""Methods of the policy's files. A change after which the policy as a whole does not parse is refused.

Files are ``STATE/policy.d/NAME.policy``, and for ``policy.include`` ``STATE/policy.d/include/NAME``. ``Get`` answers
with a token, ``sha256:`` and the digest of the file, on a line before the text; ``Replace`` and ``Remove`` need
that token, so that nobody undoes what somebody else has just written. The token ``any`` matches every state of the
file, ``new`` only a file that does not exist.

``admin.casemate.policy.Check`` and ``….include.Check`` answer what ``Replace`` would refuse the payload for, as one
line, or nothing where it would not; they change nothing. ``admin.casemate.policy.Explain`` takes
``SOURCE SERVICE+ARGUMENT [TARGET]`` and answers JSON: ``verdict`` in words, the ``rule`` that decides, those ``near``
to it (each with ``where`` and ``text``), and ``change``: a ``line`` that would turn the decision round, its ``file``,
and the number of the line that it must come ``before`` (0: any).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from pathlib import Path

from casemate.api.context import Context
from casemate.api.method import Access, method
from casemate.host.files import replace_file
from casemate.model.system import System
from casemate.qrexec.explain import explain, facts
from casemate.qrexec.system import system_info
from casemate.qrexec.tokens import ADMIN, HOST
from casemate.wire.errors import (
    NotFoundError,
    PolicyError,
    PolicyFileNameError,
    PolicyFileNotFoundError,
    PolicySyntaxError,
    PolicyTokenError,
    ProtocolError,
    printable,
)
from casemate.wire.qrexec import parse_call, requested_target

KINDS = {"policy": ("", ".policy"), "policy.include": ("include", "")}
MAX_TEXT = 64 << 10
"""Limit of the Admin API (bytes): file of the policy, when replaced."""
_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
DELIVERED = ("10-paranoid-restore", "90-default")
"""The files that come with Casemate; each start of the daemon writes them anew, so a change would be lost."""


def _directory(context: Context, kind: str) -> Path:
    return context.store.path.parent / "policy.d" / KINDS[kind][0]


def _path(context: Context, kind: str, name: str) -> Path:
    if not 1 <= len(name) <= 60 or not set(name) <= _LETTERS or name.startswith("-"):
        raise PolicyFileNameError(f"Invalid name of a policy file: {printable(name, 80)!r}")
    return _directory(context, kind) / (name + KINDS[kind][1])


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise PolicyFileNotFoundError(f"No such policy file: {path.stem}") from None


def _token(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _require(path: Path, token: str) -> None:
    if token == "any":  # noqa: S105
        return
    if token == "new":  # noqa: S105
        if path.exists():
            raise PolicyTokenError(f"The file {path.stem} exists already")
    elif not token.startswith("sha256:"):
        raise PolicyTokenError("A token is 'any', 'new', or sha256: with a digest")
    elif not path.exists() or _token(_read(path)) != token:
        raise PolicyTokenError(f"The file {path.stem} was changed meanwhile")


def _wrong(context: Context, path: Path, data: bytes | None) -> str:
    """Why the policy would be broken with this content of a file (None: without the file); empty where it would not."""
    try:
        context.policy.load({path: data})
    except PolicyError as error:
        return str(error)
    return ""


def _change(context: Context, path: Path, data: bytes | None) -> None:
    """Write a file, or remove it (None), if the policy as a whole still parses with the change.

    The whole is what decides about calls: with the files of the run-time directory, which may include this one.
    """
    if wrong := _wrong(context, path, data):
        raise PolicySyntaxError(wrong)
    if data is None:
        path.unlink(missing_ok=True)
    else:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace_file(path, data)


@method("{kind}.List", Access.READ, kind=KINDS)
def list_files(context: Context, kind: str) -> str:
    """The names of the files."""
    suffix = KINDS[kind][1]
    directory = _directory(context, kind)
    found = [p.name for p in directory.iterdir() if p.is_file()] if directory.is_dir() else []
    return "".join(f"{name.removesuffix(suffix)}\n" for name in sorted(found) if name.endswith(suffix))


@method("{kind}.Get", Access.READ, kind=KINDS)
def get_file(context: Context, kind: str, arg: str) -> str:
    """The token of a file, and its text."""
    data = _read(_path(context, kind, arg))
    return f"{_token(data)}\n{data.decode('utf-8', 'backslashreplace')}"


@method("{kind}.Replace", Access.EXECUTE, kind=KINDS)
async def replace_policy(context: Context, kind: str, arg: str, payload: str) -> None:
    """Give a file new text; the first line of the payload is the token."""
    path = _path(context, kind, arg)
    token, newline, text = payload.partition("\n")
    if not newline or len(text) > MAX_TEXT:
        raise ProtocolError(f"The payload is a token, a line feed and at most {MAX_TEXT} characters of text")
    if kind == "policy" and arg in DELIVERED:
        raise PolicyFileNameError(f"{arg} comes with Casemate; write a file that sorts before 90-default")
    _require(path, token)
    await asyncio.to_thread(_change, context, path, text.encode("ascii"))


@method("admin.casemate.{kind}.Check", Access.EXECUTE, kind=KINDS)
async def check_policy(context: Context, kind: str, arg: str, payload: str) -> str:
    """What is wrong with a text for a file; empty where nothing is."""
    return await asyncio.to_thread(_wrong, context, _path(context, kind, arg), payload.encode("ascii"))


@method("admin.casemate.policy.Explain", Access.READ)
def explain_policy(context: Context, system: System, payload: str) -> str:
    """Which rule decides about a call, and what would change that."""
    words = payload.split(" ")
    if len(words) not in (2, 3):
        raise ProtocolError("The payload is SOURCE SERVICE+ARGUMENT [TARGET]")
    source, target = words[0], requested_target(words[2] if len(words) == 3 else "")
    service, argument = parse_call(words[1])
    info = system_info(system, lambda name: context.state(system.domains[name]))
    if info.find(HOST if source == ADMIN else source) is None:
        raise NotFoundError(source)
    try:
        policy = context.policy.current()
    except PolicyError as error:
        raise PolicySyntaxError(f"The policy is broken, every call is denied: {error}") from error
    return json.dumps(facts(explain(policy, info, source, service, argument or "", target)))


@method("{kind}.Remove", Access.EXECUTE, kind=KINDS)
async def remove_policy(context: Context, kind: str, arg: str, payload: str) -> None:
    """Remove a file; the payload is its token."""
    path = _path(context, kind, arg)
    if kind == "policy" and arg in DELIVERED:
        raise PolicyFileNameError(f"{arg} comes with Casemate and stays")
    _read(path)
    _require(path, payload)
    await asyncio.to_thread(_change, context, path, None)


@method("policy.GetFiles", Access.READ)
def get_files(context: Context, arg: str) -> str:
    """The files with a rule that names the service."""
    found = []
    top = context.store.path.parent / "policy.d"
    for path in sorted(top.glob("*.policy")):
        for text in path.read_text("utf-8", "replace").splitlines():
            words = text.split()
            if words and not text.startswith("#") and words[0] == arg:
                found.append(path.stem)
                break
    return "".join(f"{name}\n" for name in found)
