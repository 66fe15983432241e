"""What starts the manager page where nobody has looked whether this host has what it imports: says what is missing.

The page needs three packages of Python that nothing else of Casemate needs. They are the extra ``casemate[web]`` of a
wheel; a clone's environment has them. Debian 12 and 13 have older versions of uvicorn than the page works with.
"""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, version

OLDEST = {"starlette": (0, 46), "uvicorn": (0, 34), "jinja2": (3, 1)}
"""The oldest versions that pass the page's tests (tests/contract/test_web.py)."""


def missing() -> list[str]:
    """What is missing or too old, as pip takes it; empty where the page can run."""
    found = []
    for name, oldest in OLDEST.items():
        try:
            there = tuple(int(part) for part in version(name).split(".")[:2] if part.isdecimal())
        except PackageNotFoundError:
            there = ()
        if there < oldest:
            found.append(f"{name}>={'.'.join(map(str, oldest))}")
    return found


def main() -> int:
    """Run the page; 1 where packages are missing."""
    if lacking := missing():
        quoted = " ".join(f"'{one}'" for one in lacking)
        sys.stderr.write(
            f"casemate web: this Python lacks {', '.join(lacking)}. An environment that has them can run the page:\n"
            "  python3 -m venv --system-site-packages ~/casemate-web\n"
            f"  ~/casemate-web/bin/pip install {quoted}\n"
            "  ~/casemate-web/bin/python -m casemate.web\n"
        )
        return 1
    from casemate.web.server import main as serve

    return serve()
