"""Disposables that are started before they are asked for: the features that say how many, and which there are.

A person sets how many of a disposable template are to wait (`MAX`), how long after a use the next one is started
(`DELAY`), and how much memory must stay free (`THRESHOLD`, of dom0). The daemon writes which there are: `PRELOADED` on
the template, `IN_PROGRESS` on one that is being started, `COMPLETED` on one that waits. Names and meaning are those of
Qubes OS 4.3 (``qubes/vm/mix/dvmtemplate.py``).
"""

from __future__ import annotations

import re

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


def set_listed(template: Domain, names: list[str]) -> None:
    """Write which disposables wait."""
    if names:
        template.features[PRELOADED] = " ".join(names)
    elif PRELOADED in template.features:
        del template.features[PRELOADED]


def wanted(system: System, template: Domain) -> int:
    """How many disposables of a template are to wait.

    dom0's feature decides for the default disposable template; that of any other template is its own.
    """
    if not template.template_for_dispvms:
        return 0
    default = system.default_dispvm
    value = template.features.get(MAX, "")
    if default is not None and default.name == template.name:
        value = system.admin.features.get(MAX, value)
    return min(int(value), MOST) if _NUMBER.fullmatch(value) else 0


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
