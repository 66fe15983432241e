"""``python -m casemate.host.clean_up machines|devices|cards``: the last of an installation of which nothing runs.

``machines`` ends all of its machines and undefines them in libvirt. ``devices`` takes back the access that its qubes'
users have to devices of the host. ``cards`` gives network cards back that its net qubes have. ``casemate clean`` runs
them in processes of their own, because it does not import libvirt itself.
"""

from __future__ import annotations

import asyncio
import sys

from casemate.host.card_records import undo_all
from casemate.host.libvirt_machines import connect
from casemate.host.qemu_access import take_all_back, users_of
from casemate.settings import load
from casemate.wire.errors import CasemateError


async def _undefine_machines() -> None:
    machines = await connect(load())
    try:
        for machine in await machines.list():
            await machines.destroy(machine.uuid)
            await machines.undefine(machine.uuid)
    finally:
        await machines.close()


def main() -> int:
    """0 when there is nothing of ours any more."""
    try:
        if sys.argv[1:] == ["devices"]:
            take_all_back(users_of(load()))
        elif sys.argv[1:] == ["cards"]:
            undo_all(load().run)
        else:
            asyncio.run(_undefine_machines())
    except CasemateError as error:
        sys.stderr.write(f"casemate: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
