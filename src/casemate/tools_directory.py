"""Where this installation has its programs (``casemate``, ``qvm-ls`` …), for those that run them or make links to them.

::

    a clone     CLONE/bin                   the package lies in CLONE/src
    Debian      /usr/lib/casemate/bin       the package lies where the system's Python looks
    a wheel     ENVIRONMENT/bin             beside the Python that runs us
"""

from __future__ import annotations

import sys
from pathlib import Path

_DEBIAN = Path("/usr/lib/casemate/bin")
"""Made by packaging/debian/rules. Not /usr/bin, where the names of upstream's tools may be another package's."""


def tools_directory(package: Path = Path(__file__).resolve().parent) -> Path:
    """The directory of the programs that belong to the copy of the package in ``package``.

    Told by where the copy lies, never by PATH: what a timer of the host runs must be what wrote the timer.
    """
    if package.parent.name == "src":
        return package.parents[1] / "bin"
    if package.parent == Path("/usr/lib/python3/dist-packages"):
        return _DEBIAN
    return Path(sys.executable).parent
