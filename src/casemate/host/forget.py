"""``python -m casemate.host.forget``: end and forget all machines of this installation in libvirt (for clean-up)."""

from __future__ import annotations

import asyncio
import sys

from casemate.host.libvirt_machines import connect
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
    """0 when libvirt knows none of ours any more."""
    try:
        asyncio.run(_forget())
    except CasemateError as error:
        sys.stderr.write(f"casemate: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
