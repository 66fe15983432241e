"""``python -m casemate.link NAME`` with a JSON description on stdin; says ``listening`` on stdout when it serves."""

from __future__ import annotations

import json
import os
import signal
import sys

from casemate.link.confine import become, confine
from casemate.link.link import Link
from casemate.link.requests import SILENT_SECONDS
from casemate.streams.half_frame import HALF_FRAME_SECONDS

_MAX_DESCRIPTION = 8 << 20


def main() -> int:
    """Serve the qube until killed."""
    description = json.loads(sys.stdin.buffer.read(_MAX_DESCRIPTION))
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    os.umask(0o077)
    if description["uid"] is not None:
        become(description["uid"], description["gid"])
    held = confine(description["directory"])
    # What the daemon does not say has its default; tests shorten both.
    seconds = (
        float(description.get("half_frame_seconds", HALF_FRAME_SECONDS)),
        float(description.get("silent_seconds", SILENT_SECONDS)),
    )
    sys.stderr.write(f"{description['name']}: files: {f'Landlock, version {held}' if held else 'no Landlock'}\n")
    link = Link(description["name"], description["directory"], description["database"], *seconds)
    del description
    link.connect()
    sys.stdout.write("listening\n")
    sys.stdout.flush()
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.close(null)
    link.loop.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
