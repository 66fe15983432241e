"""``python -m casemate.host.prepare [--fresh] <RECIPE``: fill the cache with a template's image and kernel, showing
progress. ``--fresh`` bootstraps anew, for newer packages. The recipe is JSON (wire/recipe.py)."""

from __future__ import annotations

import asyncio
import logging
import sys
import time

from casemate.host.process import Runner
from casemate.host.template_build import build_template
from casemate.settings import load
from casemate.wire import recipe
from casemate.wire.errors import CasemateError, printable


class _Shown:
    """Shows the log of a build to who waits for it."""

    def __init__(self) -> None:
        self._begin = time.monotonic()

    def line(self, text: str) -> None:
        if not sys.stderr.isatty():
            return  # a log needs the error and where the whole output is; progress is for who waits
        sys.stderr.write(f"  {time.monotonic() - self._begin:6.1f} s  {printable(text, 160)}\n")
        sys.stderr.flush()

    def ended(self, step: str) -> None:
        """The lines tell it."""


def main(argv: list[str]) -> int:
    """Build what is not in the cache; 0 when all is there."""
    # The error says what matters and where the whole output is; the log would repeat it with pages of our arguments.
    logging.disable(logging.WARNING)

    try:
        wanted = recipe.decode(sys.stdin.buffer.read(recipe.MAX_BYTES + 1))
        asyncio.run(build_template(load(), Runner(), wanted, _Shown(), fresh="--fresh" in argv[1:]))
    except CasemateError as error:
        sys.stderr.write(f"casemate: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
