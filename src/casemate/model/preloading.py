"""Disposables that are started before they are asked for: the features that say how many, and which there are.

A person sets how many of a disposable template are to wait (`MAX`), how long after a use the next one is started
(`DELAY`), and how much memory must stay free (`THRESHOLD`, of dom0). The daemon writes which there are: `PRELOADED` on
the template, `IN_PROGRESS` on one that is being started, `COMPLETED` on one that waits. Names and meaning are those of
Qubes OS 4.3 (``qubes/vm/mix/dvmtemplate.py``).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection

from casemate.model import inheritance
from casemate.model.domain import Domain
from casemate.model.features import PRELOADED as PRELOADED
from casemate.model.system import System
from casemate.wire.errors import ValueInvalidError, printable

MAX = "preload-dispvm-max"
DELAY = "preload-dispvm-delay"
THRESHOLD = "preload-dispvm-threshold"
IN_PROGRESS = "preload-dispvm-in-progress"
COMPLETED = "preload-dispvm-completed"
INTERNAL = "internal"
"""Hides a qube from menus and from lists of possible targets. A disposable that waits has it."""

DEFAULT_DELAY = 3.0
"""Seconds between a use and the start of the next, as in Qubes OS: the one that is in use starts its programs then."""
MOST = 64
"""Limit of ours: disposables of one template that wait. Memory ends it earlier on most hosts."""

_NOT_OF_THE_MACHINE = frozenset(
    {"is_preload", "label", "icon", "include_in_backups", "backup_timestamp", "auto_cleanup"}
)
"""Properties of a disposable that say nothing about the machine that was made for it."""

_NUMBER = re.compile(r"[0-9]{1,9}", re.A)
_SECONDS = re.compile(r"-?[0-9]{1,6}(\.[0-9]{1,3})?", re.A)


def check(feature: str, value: str) -> None:
    """ValueInvalidError for a value that the feature cannot have; any other feature is no business of this module."""
    if feature == MAX and value and not (_NUMBER.fullmatch(value) and int(value) <= MOST):
        raise ValueInvalidError(f"{MAX} is a whole number from 0 to {MOST}, not {printable(value, 40)!r}")
    if feature == THRESHOLD and value and not _NUMBER.fullmatch(value):
        raise ValueInvalidError(f"{THRESHOLD} is a number of MiB, not {printable(value, 40)!r}")
    if feature == DELAY and value and not _SECONDS.fullmatch(value):
        raise ValueInvalidError(f"{DELAY} is a number of seconds, not {printable(value, 40)!r}")


def listed(template: Domain) -> list[str]:
    """Names of the disposables of a template that wait or are being started for it, oldest first."""
    return template.features.get(PRELOADED, "").split()


def wanted(system: System, template: Domain) -> int | None:
    """How many disposables of a template are to wait; None where nobody has said.

    dom0's feature decides for the default disposable template; that of any other template is its own.
    """
    if not template.template_for_dispvms:
        return 0
    default = system.default_dispvm
    value = template.features.get(MAX)
    if default is not None and default.name == template.name:
        value = system.admin.features.get(MAX, value)
    if value is None:
        return None
    return min(int(value), MOST) if _NUMBER.fullmatch(value) else 0


def templates(system: System) -> list[Domain]:
    """The disposable templates of which some are to wait, or do. Asked after each commit, so no property of a qube that
    has nothing to do with it is looked at."""
    found = [one for one in system.domains.values() if (of := one.state.features) and (MAX in of or PRELOADED in of)]
    default = system.default_dispvm
    if default is not None and MAX in system.admin.features and default not in found:
        found.append(default)
    return [one for one in found if one.template_for_dispvms]


def delay(template: Domain) -> float:
    """Seconds from a use to the start of the next. Below zero: the next is started only when none is left."""
    value = template.features.check(DELAY, admin=True)
    if value is None:
        return DEFAULT_DELAY
    return float(value) if _SECONDS.fullmatch(value) else 0.0


def threshold(system: System) -> int:
    """MiB of the host's memory that must stay free."""
    value = system.admin.features.get(THRESHOLD, "")
    return int(value) if _NUMBER.fullmatch(value) else 0


# -- what becomes of a disposable


def enlist(system: System, name: str) -> None:
    """A disposable is being started before it is asked for."""
    template = _template(system, name)
    _set_listed(template, [*listed(template), name])


def complete(system: System, name: str, made: str) -> None:
    """It has started, and waits; ``made``: see made_of."""
    features = system.domains[name].features
    features[COMPLETED] = made
    features.pop(IN_PROGRESS, None)


def give_away(system: System, name: str, creator: str | None) -> None:
    """From now on it is a disposable like any other, and ``creator``'s (None: still of who made it)."""
    domain, template = system.domains[name], _template(system, name)
    _set_listed(template, [one for one in listed(template) if one != name])
    for feature in (IN_PROGRESS, COMPLETED):
        domain.features.pop(feature, None)
    if not template.features.get(INTERNAL):
        domain.features.pop(INTERNAL, None)
    if creator is not None:
        for tag in [tag for tag in domain.tags if tag.startswith(inheritance.CREATED_BY)]:
            domain.tags.remove(tag)
        domain.tags.add(f"{inheritance.CREATED_BY}{creator}")


def take_off(system: System, names: Collection[str]) -> None:
    """These wait no more; some may be gone already."""
    for template in system.domains.values():
        there = listed(template)
        if set(there).intersection(names):
            _set_listed(template, [one for one in there if one not in names])


def _template(system: System, name: str) -> Domain:
    template = system.domains[name].template
    assert template is not None, "a disposable has one"
    return template


def _set_listed(template: Domain, names: list[str]) -> None:
    if names:
        template.features[PRELOADED] = " ".join(names)
    elif PRELOADED in template.features:
        del template.features[PRELOADED]


def made_of(disposable: Domain) -> str:
    """A digest of the settings that a disposable's machine was started with, its own and those of its templates.

    It is the value of the feature COMPLETED. Another digest now means that the machine is not what a fresh one would
    be.
    """
    live = disposable.live()
    words = [
        f"{name}={disposable.text(name)}"
        for name in disposable.properties()
        if name not in _NOT_OF_THE_MACHINE and name not in live
    ]
    base: Domain | None = disposable
    while base is not None:
        words.append(base.name)
        if base is disposable.template:
            # What a fresh one would take over now.
            words += [f"{name}:{value}" for name, value in inheritance.properties(base, type(disposable)).items()]
            words += sorted(inheritance.tags(base))
        words += [f"{base.name}:{name}={value}" for name, value in base.features.items() if not _is_ours(name)]
        base = base.template
    return hashlib.sha256("\0".join(words).encode()).hexdigest()[:32]


def is_of_one_that_waits(feature: str) -> bool:
    """Whether a feature is about waiting for a use, so that a copy of the qube does not take it over."""
    return _is_ours(feature) or feature in (MAX, DELAY, THRESHOLD, IN_PROGRESS, COMPLETED)


def _is_ours(feature: str) -> bool:
    """Features that change while a disposable waits, and that its machine is not made of."""
    return feature.startswith(PRELOADED) or feature == INTERNAL
