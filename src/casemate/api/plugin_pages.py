"""Reference pages of what plugs in: storage drivers, from their declarations."""

from __future__ import annotations

from casemate.api.pages import code, page, table
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
        rows = [
            (code(one.name), one.doc, code(one.default) if one.default else "", "yes" if one.changeable else "no")
            for one in driver.options
        ]
        parts.append(f"## {name}\n\n{driver.doc}{also}")
        parts.append(table(("Option", "Meaning", "Default", "Later"), rows))
    return page(*parts)
