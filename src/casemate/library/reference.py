"""``python -m casemate.library.reference DIR``: the reference page of the public library, from its docstrings."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from inspect import Parameter
from pathlib import Path
from types import FunctionType

import casemate
from casemate.library.calls import Completed
from casemate.library.devices import Device, DeviceClass, Devices
from casemate.library.events import Event, Events
from casemate.library.firewall import Firewall
from casemate.library.qube import Qube
from casemate.library.qubes import Qubes
from casemate.library.settings import Features, Tags
from casemate.library.stores import open_store
from casemate.library.volumes import Volume, Volumes
from casemate.store.store import Store, Transaction
from casemate.wire.images import Snapshot

NOTE = "<!-- Written by `make docs` from the code: do not edit. -->"
CLASSES: tuple[type, ...] = (
    Qubes, Qube, Completed, Features, Tags, Volumes, Volume, Devices, DeviceClass, Device, Firewall, Snapshot, Events,
    Event,
)  # fmt: skip
_STORE: tuple[type, ...] = (Store, Transaction)
_INTERNAL = frozenset({"client", "value_of", "values_of", "subscribe", "begin_with", "attempt", "change"})
"""Members that are for other parts of Casemate. They carry no promise, so the page leaves them out."""
_PROPERTIES = "properties.md"
_WIDTH = 100


def page() -> str:
    """The text of the page."""
    parts = [
        NOTE,
        "# The library",
        "What `import casemate` gives to scripts; [how to use it](../howto/scripts.md). It follows semantic "
        "versioning: within one major version nothing on this page is taken away or changes its meaning. "
        f"Properties that are attributes are on [a page of their own]({_PROPERTIES}).",
        f"Its names are {', '.join(f'`{name}`' for name in sorted(casemate.__all__))}. "
        "Objects of the other classes are made by the members that return them.",
    ]
    for cls in CLASSES:
        parts += _class(cls)
    parts += ["## open_store", _code(open_store, "casemate.open_store"), _text(open_store)]
    for cls in _STORE:
        parts += _class(cls)
    parts += ["## Errors", inspect.getdoc(casemate.errors) or "", _error_table()]
    return "\n\n".join(parts) + "\n"


def _class(cls: type) -> Iterator[str]:
    yield f"## {cls.__name__}"
    yield _text(cls)
    if dataclasses.is_dataclass(cls):
        yield "\n".join(f"* `{field.name}: {_plain(str(field.type))}`" for field in dataclasses.fields(cls))
    elif cls is Qubes:
        yield _code(Qubes.__init__, "casemate.Qubes", skip_self=True)
    for name, member in vars(cls).items():
        if name.startswith("_") or name in _INTERNAL:
            continue
        if isinstance(member, property) and member.fget is not None:
            setting = ", can be set" if member.fset is not None else ""
            yield f"**`{name}: {_annotation(member.fget)}`**{setting}. {_text(member.fget)}"
        elif isinstance(member, FunctionType):
            yield f"{_code(member, name, skip_self=True)}\n\n{_text(member)}"


def _annotation(function: object) -> str:
    found = getattr(function, "__annotations__", {}).get("return", "")
    return _plain(str(found))


def _plain(text: str) -> str:
    return text.replace("Client", "Qubes")


def _code(function: Callable[..., object], name: str, skip_self: bool = False) -> str:
    """A function's head as a person would write it, a parameter a line where it is long."""
    signature = inspect.signature(function)
    words: list[str] = []
    named = False
    for key, parameter in signature.parameters.items():
        if skip_self and key == "self":
            continue
        if parameter.kind is Parameter.KEYWORD_ONLY and not named:
            words.append("*")
            named = True
        star = "**" if parameter.kind is Parameter.VAR_KEYWORD else ""
        default = "" if parameter.default is Parameter.empty else f" = {parameter.default!r}"
        words.append(f"{star}{key}: {parameter.annotation}{default}")
    result = "" if signature.return_annotation == "None" else f" -> {signature.return_annotation}"
    if inspect.isgeneratorfunction(inspect.unwrap(function)):  # all of ours are context managers
        result = f" -> AbstractContextManager{result.removeprefix(' -> Iterator')}"
    head = f"{name}({', '.join(words)}){_plain(result)}"
    if len(head) > _WIDTH:
        inner = "".join(f"    {word},\n" for word in words)
        head = f"{name}(\n{inner}){_plain(result)}"
    return f"```python\n{head}\n```"


def _text(thing: object) -> str:
    return re.sub(r"``([^`]+)``", r"`\1`", re.sub(r"^::\n", "", inspect.getdoc(thing) or "", flags=re.M))


def _error_table() -> str:
    by_class: dict[type, list[str]] = {}
    for name, found in vars(casemate.errors).items():
        if inspect.isclass(found) and issubclass(found, Exception):
            by_class.setdefault(found, []).append(name)
    rows = ["| Class | Also called | Meaning |", "|---|---|---|"]
    for cls, names in sorted(by_class.items(), key=lambda item: item[0].__name__):
        others = ", ".join(f"`{name}`" for name in names if name != cls.__name__) or "–"
        meaning = _text(cls).split("\n\n")[0].replace("\n", " ").replace("|", "\\|")
        rows.append(f"| `{cls.__name__}` | {others} | {meaning} |")
    return "\n".join(rows)


def main(argv: list[str]) -> int:
    """Write the page to the directory that the first argument names."""
    if len(argv) != 1:
        sys.stderr.write("usage: python -m casemate.library.reference DIR\n")
        return 2
    path, text = Path(argv[0]) / "library.md", page()
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")
        sys.stdout.write(f"{path} is written\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
