"""What starts the daemon where nobody has looked whether this host has what it imports: says what is missing.

Two of its libraries come with the system, not with a wheel: they are bindings of the system's own libvirt and nftables,
and a copy that was built for another version would fail at some call.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys

NEEDED = {"libvirt": "python3-libvirt", "nftables": "python3-nftables"}
"""Modules of the system's Python and Debian's packages that have them."""
PROGRAMS = {"qemu-system-x86_64": "qemu-system-x86", "qemu-img": "qemu-utils", "mmdebstrap": "mmdebstrap", "tcc": "tcc"}
"""Programs without which no qube is made, and Debian's packages that have them. The daemon serves without them, so they
are named only beside a module that is missing: all that is to be installed, in one line."""
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def missing_packages() -> list[str]:
    """Debian's names of the packages that this host lacks; none where all modules are there."""
    found = [package for module, package in NEEDED.items() if importlib.util.find_spec(module) is None]
    if not found:
        return []
    return found + [package for program, package in PROGRAMS.items() if shutil.which(program, path=_PATH) is None]


def missing_text() -> str:
    """What is missing and how to get it; empty where nothing is."""
    missing = missing_packages()
    if not missing:
        return ""
    text = f"This host lacks {', '.join(missing)}. On Debian: sudo apt install {' '.join(missing)}"
    if sys.prefix != sys.base_prefix and set(missing) & set(NEEDED.values()):
        text += ". If they are installed, this environment does not see them: make it with --system-site-packages"
    return text


def main() -> int:
    """Run the daemon; 1 where the host lacks what it takes."""
    if missing := missing_text():
        sys.stderr.write(f"casemated: {missing}\n")
        return 1
    from casemate.daemon.main import main as serve

    return serve()


if __name__ == "__main__":
    sys.exit(main())
