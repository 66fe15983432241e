"""The tour itself, as ``make run`` shows it, in a state of its own."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.live.world import BIN

pytestmark = pytest.mark.live


@pytest.mark.timeout(1200)
def test_the_tour_observes_every_step_and_leaves_nothing() -> None:
    with tempfile.TemporaryDirectory(prefix="cmt", dir="/tmp") as directory:  # noqa: S108
        Path(directory).chmod(0o711)  # qubes pass through it
        state = Path(directory) / "s"
        environment = {**os.environ, "CASEMATE_TOUR_STATE": str(state)}
        done = subprocess.run([BIN / "casemate", "tour"], env=environment, capture_output=True, timeout=1100)
        text = done.stdout.decode()
        if done.returncode != 0:
            pytest.fail(f"{text[-3000:]}\n{done.stderr.decode()[-4000:]}")
        assert re.search(r"^\[(\d+)/\1\]", text, re.M), "not all of its steps"
        assert "facts observed" in text
        assert not state.exists()
