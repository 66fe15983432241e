"""``python -m casemate.api.reference DIR``: pages of properties, volumes, methods, events, errors and limits."""

from __future__ import annotations

import inspect
import pkgutil
import sys
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import casemate
from casemate.api.limits import limits as declared_limits
from casemate.api.method import Access, Method
from casemate.api.methods import INTERNAL, METHODS, MISC, MODULES
from casemate.api.pages import code, page, table, write
from casemate.api.plugin_pages import device_classes, storage_drivers
from casemate.engine.machine import TARGETS
from casemate.engine.power_table import TABLE, Way
from casemate.model.classes import CLASSES, all_properties
from casemate.model.domain import Domain
from casemate.model.invariants import INVARIANTS
from casemate.model.properties import Holder, Property, Setting
from casemate.model.system import System
from casemate.model.volumes import VOLUME_NAMES, VolumeRule
from casemate.wire.admin import ADMIN
from casemate.wire.api_event import EVENTS
from casemate.wire.errors import CasemateError, all_errors

_NOT_LOADED = ("__main__", "lock_windows")
"""Modules that are programs, or of another system."""


# ------------------------------------------------------------------------------------------------------- properties

_WHEN = {Setting.FREE: "any time", Setting.ONCE: "at creation", Setting.READ_ONLY: "never"}


def properties() -> str:
    """Every property of qubes and of the system."""
    return page(
        "Properties",
        "Shown and changed with `qvm-prefs QUBE [PROPERTY [VALUE]]` and `qubes-prefs [PROPERTY [VALUE]]`. A property "
        "that nobody set has its default; `--default` gives it back. *Type* is the word that the Admin API sends. A "
        "property *without effect* is stored and shown for the tools of Qubes OS; nothing here acts on it.",
        "## Of qubes",
        "\n".join(f"* {name}: {_sentence(inspect.getdoc(cls) or '')}." for name, cls in CLASSES.items()),
        table(
            ("Property", "Classes", "Type", "Value", "Default", "May be set", "What it is for"),
            (_property_row(name, prop, _classes(name), _defaults(name)) for name, prop in all_properties().items()),
        ),
        "## Of the system",
        table(
            ("Property", "Type", "Value", "Default", "May be set", "What it is for"),
            (_property_row(n, p, None, _default(System, n)) for n, p in System.properties().items()),
        ),
        "## What must hold after each change",
        "\n".join(f"* {_sentence(inspect.getdoc(rule.require) or '')}." for rule in INVARIANTS),
    )


def _sentence(text: str) -> str:
    """The first sentence without its full stop, to stand within another."""
    first = " ".join(text.strip().split("\n\n")[0].split()).rstrip(".")
    return first[:1].lower() + first[1:] if first[1:2].islower() or first[1:2] == " " else first


def _classes(name: str) -> str:
    having = [klass for klass, cls in CLASSES.items() if cls.has(name)]
    lacking = [klass for klass in CLASSES if klass not in having]
    if not lacking:
        return "all"
    return ", ".join(having) if len(having) <= len(lacking) else "all but " + ", ".join(lacking)


def _default(holder: type[Holder], name: str) -> str:
    rule = holder.defaults.get(name) or holder.declaration(name).default
    return "" if rule is None else rule.describe()


def _defaults(name: str) -> str:
    """The default in words, then the classes where it is another."""
    said = {klass: _default(cls, name) for klass, cls in CLASSES.items() if cls.has(name)}
    usual = max(said.values(), key=list(said.values()).count)
    return "; ".join([usual, *(f"{klass}: {words}" for klass, words in said.items() if words != usual)]).strip("; ")


def _when(prop: Property[Any]) -> str:
    return "while halted" if prop.while_halted else _WHEN[prop.setting]


def _property_row(name: str, prop: Property[Any], classes: str | None, default: str) -> tuple[str, ...]:
    start = (code(name),) if classes is None else (code(name), classes)
    value = prop.kind.syntax() if prop.setting is not Setting.READ_ONLY else ""
    doc = f"{prop.doc} *Without effect: {prop.kept}.*" if prop.kept else prop.doc
    return (*start, prop.kind.tag, value, default, _when(prop), doc)


# ---------------------------------------------------------------------------------------------------------- volumes


def volumes() -> str:
    """Which class has which volumes."""
    rows = [(klass, *(_volume(cls, name) for name in VOLUME_NAMES)) for klass, cls in CLASSES.items()]
    return page(
        "Volumes",
        "What a new qube of each class gets. A volume that a class does not have is absent everywhere: it is neither "
        f"created nor shown nor given to the machine. A qube gets them as {_disks()}.",
        table(("Class", *VOLUME_NAMES), rows),
        "*kept*: what was written stays. *layer*: each start gets a fresh layer over the volume of the template, which "
        "is thrown away at stop. *fresh*: empty at each start. Sizes are limits: the files grow as they are written. "
        "`qvm-ls -d` shows what they take; the Admin API's `admin.vm.volume.*` changes them "
        "([methods](methods.md)).",
    )


def _disks() -> str:
    """Which disk of the guest each volume is."""
    return ", ".join(f"{code(f'/dev/{disk}')} ({volume})" for volume, disk in TARGETS.items())


def _volume(cls: type[Domain], name: str) -> str:
    rule: VolumeRule | None = cls.layout.get(name)
    if rule is None:
        return ""
    kind = "layer" if rule.snap_on_start else "kept" if rule.save_on_stop else "fresh"
    return f"{kind}, {_size(rule.size)}{'' if rule.rw else ', read-only'}"


def _size(number: int) -> str:
    for power, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if number >= 1 << power and number % (1 << power) == 0:
            return f"{number >> power} {unit}"
    return f"{number} bytes"


# ---------------------------------------------------------------------------------------------------------- methods

ALL_METHODS = (*METHODS.values(), *INTERNAL.values(), *MISC.values())
"""Those of the Admin API, then those of the two smaller sockets."""
_ACCESS = {Access.READ: "reads", Access.WRITE: "changes the store", Access.EXECUTE: "acts", Access.STREAM: "streams"}


def methods() -> str:
    """Every method of the Admin API."""
    parts = [
        f"One connection to the daemon's socket is one call: `METHOD+ARGUMENT SOURCE name DESTINATION`, NUL, payload, "
        f"end of writing. The reply is `0`, NUL, content; or `2`, NUL and an error ([errors](errors.md)). *To* says "
        f"whether the destination is a qube or {ADMIN}. A call that *reads* is answered from a snapshot and waits for "
        f"nobody; one that *changes the store* is one transaction; one that *acts* takes as long as it takes; one that "
        f"*streams* keeps the connection and sends events.",
    ]
    for noun in MODULES:
        own = [m for m in ALL_METHODS if m.handler.__module__ == noun.__name__]
        if not own:
            continue
        parts.append(f"## {noun.__name__.rpartition('.')[2].capitalize()}")
        parts.append(_markdown(inspect.getdoc(noun) or ""))
        rows = sorted((_method_row(group) for group in _by_handler(own)), key=lambda row: row[0].lower())
        parts.append(table(("Method", "To", "Argument", "Payload", "It", "What it does"), rows))
    return page("Admin API", *parts)


def _by_handler(methods: Iterable[Method]) -> list[list[Method]]:
    """Methods that one handler carries out, which differ in a word of their names."""
    found: dict[Any, list[Method]] = {}
    for method in methods:
        found.setdefault(method.handler, []).append(method)
    return list(found.values())


def _names(group: list[Method]) -> str:
    """One name for a group: ``admin.vm.device.{block,usb}.Attach``."""
    name = group[0].name
    for word, value in group[0].bound.items():
        values = ",".join(dict.fromkeys(method.bound[word] for method in group))
        name = f".{name}.".replace(f".{value}.", f".{{{values}}}.", 1).strip(".")
    return name


def _method_row(group: list[Method]) -> tuple[str, ...]:
    method = group[0]
    to = "qube" if method.wants("dest") else ADMIN
    return (code(_names(group)), to, _carries(method, "arg"), _carries(method, "payload"), _ACCESS[method.access],
            method.doc.split("\n\n")[0])  # fmt: skip


def _carries(method: Method, name: str) -> str:
    if not method.wants(name):
        return ""
    parameter = method.parameters[name]
    words = "needed" if parameter.default is inspect.Parameter.empty else "may be empty"
    return f"{words}, any bytes" if parameter.annotation in ("bytes", bytes) else words


def _markdown(text: str) -> str:
    """A docstring: an indented block after ``::`` is one in Markdown too."""
    return text.replace("::\n", ":\n")


# ----------------------------------------------------------------------------------------------------------- errors


def errors() -> str:
    """Every error: what it is called, what a tool returns, what it means."""
    rows = sorted(
        ((code(cls.wire_name), cls.__name__, str(cls.exit_status), _meaning(cls)) for cls in _known_errors()),
        key=lambda row: (row[0], row[1]),
    )
    return page(
        "Errors",
        "*Wire name* is what the Admin API sends (that of Qubes OS where it has one; `QubesException` is what it falls "
        "back to), *class* what code here raises, *exit status* what a tool returns for it.",
        table(("Wire name", "Class", "Exit status", "Meaning"), rows),
        "A tool also returns 2 for a wrong command line or the name of a qube that does not exist, 130 when it is "
        "interrupted, 141 when nobody reads its output any more. `qvm-run` returns the status of what it ran, else 125 "
        "(could not be run), 126 (refused by the policy), 127 (no such service or program), 255 (the qube went away). "
        "A fault of ours travels as its number only; the daemon's log says what it was.",
    )


def _meaning(cls: type[CasemateError]) -> str:
    return (inspect.getdoc(cls) or "").split(". ")[0].rstrip(".") + "."


_PROGRAMS = ("agent", "cli", "client", "daemon", "library", "link", "vchan")
"""Packages of programs and scripts: what they raise beyond the others' errors is in no reply of the API."""


def _known_errors() -> Iterator[type[CasemateError]]:
    """Every error that is declared in a package of the daemon's side or of the wire."""
    packages = [found.name for found in pkgutil.iter_modules(casemate.__path__) if found.ispkg]
    prefixes = tuple(f"casemate.{package}." for package in packages if package not in _PROGRAMS)
    for prefix in prefixes:
        for module in _modules(prefix.rstrip(".")):
            import_module(module)
    return (cls for cls in all_errors() if cls.__module__.startswith(prefixes) and not cls.__name__.startswith("_"))


def _modules(package: str) -> Iterable[str]:
    paths = import_module(package).__path__
    for found in pkgutil.walk_packages(paths, f"{package}."):
        if found.name.rpartition(".")[2] not in _NOT_LOADED:
            yield found.name


# ----------------------------------------------------------------------------------------------------------- limits


def limits() -> str:
    """The numbers that bound what anybody may ask for."""
    parts = ["Taken from the constants in the code; *where* names them."]
    for topic, rows in declared_limits().items():
        parts.append(f"## {topic[0].upper()}{topic[1:]}")
        parts.append(
            table(
                ("What", "Limit", "Where"),
                ((limit.what, limit.text(), code(f"{limit.module}.{limit.constant}")) for limit in rows),
            )
        )
    return page("Limits", *parts)


# ----------------------------------------------------------------------------------------------------------- events


def power() -> str:
    """What each command does in each state."""
    return page(
        "Commands and states of qubes",
        "What each command does to a qube in each state (the states of `qvm-ls`). *Waits* has an end: a start has the "
        "qube's `qrexec_timeout`, a stop its `shutdown_timeout`. A refusal is an error of the class that stands there "
        "([errors](errors.md)), with these words after the qube's name, and status 1 of the tool. `qvm-shutdown`, "
        "`qvm-kill`, `qvm-start --skip-if-running` and the options `--all` of tools take a qube that is in the wanted "
        "state already for done; `qvm-start` without that option calls it an error, as in Qubes OS.",
        *(
            f"## {command.value}\n\n"
            + table(
                ("State", "Outcome", "Words", "Error"),
                (
                    (state.value, one.way.value, one.words, one.error.__name__ if one.way is Way.REFUSES else "")
                    for state, one in row.items()
                ),
            )
            for command, row in TABLE.items()
        ),
    )


def events() -> str:
    """Every event."""
    parts = [
        "On a stream of `admin.Events` each event is `1`, NUL, the qube's name (empty: the system), NUL, the event's "
        "name, NUL, then each detail's key and value with a NUL after each, and a NUL. A stream about a qube has its "
        "events alone. Those in one row come one after the other; `*` stands for the name that is also a detail "
        "(devices: the class). A detail in brackets is there where it applies. A subscriber that does not read is cut "
        "off ([limits](limits.md)); after a new connection everything may have changed.",
    ]
    for group in dict.fromkeys(event.group for event in EVENTS):
        parts.append(f"## {group}")
        rows = (
            (", ".join(map(code, event.names)), event.about, ", ".join(event.details()), _words(event))
            for event in EVENTS
            if event.group == group
        )
        parts.append(table(("Event", "About", "Details", "When"), rows))
    return page("Events", *parts)


def _words(documented: type) -> str:
    return " ".join((inspect.getdoc(documented) or "").split())


# ------------------------------------------------------------------------------------------------------------------

PAGES = {
    "properties.md": properties,
    "volumes.md": volumes,
    "methods.md": methods,
    "errors.md": errors,
    "events.md": events,
    "limits.md": limits,
    "power.md": power,
    "storage-drivers.md": storage_drivers,
    "device-classes.md": device_classes,
}
"""Every page and what writes it."""


def pages() -> dict[str, str]:
    """The text of every page."""
    return {name: make() for name, make in PAGES.items()}


def main(argv: list[str]) -> int:
    """Write the pages to the directory that the first argument names."""
    if len(argv) != 1:
        sys.stderr.write("usage: python -m casemate.api.reference DIR\n")
        return 2
    write(Path(argv[0]), pages())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
