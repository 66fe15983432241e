"""``python -m casemate.host.forget machines|devices``: for clean-up, when nothing of an installation runs any more.

``machines`` ends and forgets all of them in libvirt; ``devices`` takes back what its qubes' users were lent here.
"""

from __future__ import annotations

import asyncio
import sys

from casemate.host.libvirt_machines import connect
from casemate.host.qemu_access import take_all_back, users_of
from casemate.settings import load
from casemate.wire.errors import CasemateError


async def _forget() -> None:
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
        else:
            asyncio.run(_forget())
    except CasemateError as error:
        sys.stderr.write(f"casemate: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
