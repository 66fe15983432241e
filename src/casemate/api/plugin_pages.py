"""Reference pages of what plugs in, storage drivers and classes of devices, from their declarations."""

from __future__ import annotations

from collections.abc import Iterable

from casemate import devices
from casemate.api.pages import code, page, table
from casemate.host.plugins import Option
from casemate.storage import drivers


def storage_drivers() -> str:
    """Every storage driver of ours with its options."""
    found = {driver.name: driver for driver in drivers.built_in()}
    parts = [
        "Storage drivers",
        "A pool of volumes is added with `qvm-pool add POOL DRIVER -o OPTION=VALUE`. *Later* says whether "
        "`qvm-pool set` can change the option of a pool that exists. Packages of others add drivers by the entry point "
        "group `casemate.storage`; this page has those that come with Casemate.",
    ]
    for name, driver in sorted(found.items()):
        also = f" Also called {', '.join(map(code, driver.aliases))}." if driver.aliases else ""
        parts.append(f"## {name}\n\n{driver.doc}{also}")
        parts.append(_options(driver.options, later=True))
    return page(*parts)


def device_classes() -> str:
    """Every class of devices of ours with its options."""
    parts = [
        "Device classes",
        "A device is attached with `qvm-device CLASS attach -o OPTION=VALUE QUBE BACKEND:PORT`. *Changes* are the "
        "kernel's subsystems whose events make the daemon look for devices. Packages of others add classes by the "
        "entry point group `casemate.devices`; this page has those that come with Casemate.",
        table(
            ("Class", "Devices", "Can be attached", "Changes"),
            [
                (code(one.name), one.doc, "no" if one.refusal else "yes", ", ".join(map(code, one.subsystems)))
                for one in devices.built_in()
            ],
        ),
    ]
    for one in devices.built_in():
        if one.options:
            parts.append(f"## Options of {one.name}\n\n{_options(one.options, later=False)}")
    return page(*parts)


def _options(options: Iterable[Option], later: bool) -> str:
    head = ("Option", "Meaning", "Default", *(("Later",) if later else ()))
    rows = [
        (
            code(one.name),
            one.doc,
            code(one.default) if one.default else "",
            *(("yes" if one.changeable else "no",) if later else ()),
        )
        for one in options
    ]
    return table(head, rows)
