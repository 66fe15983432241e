"""What benches of real qubes have in common: a state of its own for one run, and the table that comes out of it."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from casemate.client.qubes import Qubes
from casemate.client.transport import Transport
from tests.bench import figures
from tests.live.world import World


def main(doc: str, name: str, measure: Callable[[World], list[figures.Row]], argv: Sequence[str] | None) -> int:
    """Measure in a new world, which is removed afterwards; 0. ``name`` is the bench's, and its section of the page."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--write", action="store_true", help="write the table to the page")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="cm") as directory:
        Path(directory).chmod(0o755)  # qubes run as users of their own
        world = World(Path(directory))
        try:
            rows = measure(world)
            status = Qubes(Transport(world.settings, daemon=())).call("admin.casemate.Status")
            kind = json.loads(status)["acceleration"].split()[0]
            text = f"`python -m tests.bench.{name} --write`. {figures.host(kind)}.\n\n{figures.table(rows)}"
        finally:
            world.clean()
    sys.stdout.write(text + "\n")
    if args.write:
        figures.write(f"bench {name}", name.capitalize(), text)
    return 0
