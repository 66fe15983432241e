"""Storage drivers, one module each. A module here is found by being here; others' are found by entry point.

A package of somebody else names its driver in its own ``pyproject.toml``::

    [project.entry-points."casemate.storage"]
    zfs = "casemate_zfs:DRIVER"

and runs ``tests/contract/test_storage_driver.py`` against it (see that file). Nothing else has to know a driver: the
Admin API lists it, checks its options and documents it from the declaration.
"""

from __future__ import annotations

from collections.abc import Mapping

from casemate.host.plugins import built_in as _built_in
from casemate.host.plugins import installed
from casemate.storage.driver import Driver

GROUP = "casemate.storage"


def built_in() -> list[Driver]:
    """The drivers that come with Casemate."""
    return list(_built_in(__path__, __name__, "DRIVER", Driver))


def load() -> Mapping[str, Driver]:
    """All drivers of this host, by name and alias. Ours take precedence; one that cannot be loaded is left out."""
    drivers: dict[str, Driver] = {}
    for driver in (*built_in(), *installed(GROUP, Driver)):
        for name in (driver.name, *driver.aliases):
            drivers.setdefault(name, driver)
    return drivers
