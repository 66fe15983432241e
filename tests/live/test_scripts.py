"""The code of the how-to for scripts, run as one script on real machines in the order of the page."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import casemate
from tests.live.world import World

pytestmark = pytest.mark.live

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "howto" / "scripts.md"


def blocks(page: Path) -> list[str]:
    """The Python blocks of a page."""
    return re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.M | re.S)


def test_the_code_of_the_how_to_runs(world: World, usable: str) -> None:
    world.run("qvm-create", "--label", "gray", "--prop", "template_for_dispvms=True", "dvm")
    world.run("qvm-features", "dvm", "casemate-warm", "1")  # off for all qubes of the tests; on for everybody else
    world.run("qvm-features", "dvm", "preload-dispvm-max", "0")
    script = "".join(blocks(PAGE))
    assert script.count("\n") > 60
    script += "work.start()\nprint(work.state)\n"
    environment = {**world.environment, "PYTHONPATH": str(Path(casemate.__file__).parents[1])}
    try:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", script], env=environment, capture_output=True, text=True, timeout=240,
            cwd=os.sep,
        )  # fmt: skip
        assert done.returncode == 0, (done.stdout, done.stderr, world.log())
        lines = done.stdout.splitlines()
        assert lines[0] == "user" and "6 page.html" in lines and lines[-1] == "Running"
        assert "['prepared', 'prepared', 'prepared']" in lines
        assert "No such qube: 'nobody'" in lines and "['report']" in lines
        assert not {"report", "report-2"} & set(world.qubes())
    finally:
        for name in ("report", "report-2", "dvm"):
            world.run("qvm-remove", "-f", name, status=None)
