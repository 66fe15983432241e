"""``python -m casemate.host.prepare KIND``: fill the cache with kernel and template image, showing progress."""

from __future__ import annotations

import asyncio
import sys
import time

from casemate.host.guest_kernel import build_kernel
from casemate.host.process import Runner
from casemate.host.template_build import build_template
from casemate.settings import load
from casemate.wire.errors import CasemateError, printable


def main(argv: list[str]) -> int:
    """Build what is not in the cache; 0 when all is there."""
    begin = time.monotonic()

    def progress(text: str) -> None:
        sys.stderr.write(f"  {time.monotonic() - begin:6.1f} s  {printable(text, 160)}\n")
        sys.stderr.flush()

    async def build(kind: str) -> None:
        settings, runner = load(), Runner()
        await build_kernel(settings, runner, progress)
        await build_template(settings, runner, kind, progress)

    try:
        asyncio.run(build(argv[1] if len(argv) > 1 else "lean"))
    except CasemateError as error:
        sys.stderr.write(f"casemate: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
