"""The tutorial: its commands, in its order, typed into one shell on real machines; what it promises is looked at.

All of it starts qubes five times, so it is run with CASEMATE_FULL=1; otherwise the first section and the last are.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.live.world import TEMPLATE, World

pytestmark = pytest.mark.live

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tutorial.md"


def sections() -> dict[str, str]:
    """The commands of each section by its title."""
    _, *parts = re.split(r"^## ", PAGE.read_text(), flags=re.M)
    found = {}
    for part in parts:
        title, _, text = part.partition("\n")
        found[title] = "".join(re.findall(r"^```sh\n(.*?)^```$", text, re.M | re.S))
    return found


PROMISED = {
    "1. A template and a first qube": [TEMPLATE, "I am user on"],
    "2. What is kept": ["a letter", "the change is gone"],
    "3. From one qube to another": ["a person is asked", "qubes.Filecopy * mail bank allow", "a letter"],
    "4. For once only": ["32 page.html"],
    "5. A backup": ["BACKUP", "mail"],
    "6. At the shell, and from scripts": ['"name": "mail"', "400"],
    "7. Clean up": [],
}
"""What a reader sees in each section."""


def test_the_commands_of_the_tutorial_do_what_it_says(world: World, tmp_path: Path) -> None:
    found = sections()
    assert list(found) == list(PROMISED) and all(found.values())
    titles = list(found) if os.environ.get("CASEMATE_FULL") else [*list(found)[:1], list(found)[-1]]
    # A shell that ends at the first command that fails; -u: at a variable that only the writer had.
    script = "set -eu\n" + "".join(f"echo '== {title}'\n{found[title]}" for title in titles)
    if len(titles) < len(found):  # what the last section undoes beyond the first
        script = script.replace(found[titles[-1]], "qvm-shutdown --wait mail\nqvm-remove -f mail\n")
    try:
        done = subprocess.run(
            ["bash", "-c", script], env=world.environment, cwd=tmp_path, capture_output=True, text=True, timeout=290,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert done.returncode == 0, (done.stdout, done.stderr, world.log())
        said = dict(part.split("\n", 1) for part in done.stdout.split("== ")[1:])
        for title in titles:
            for words in PROMISED[title]:
                assert words in said[title], (title, said[title])
        assert not {"mail", "bank", "dvm"} & set(world.qubes())
    finally:
        for name in ("mail", "bank", "dvm"):
            world.run("qvm-kill", name, status=None)
            world.run("qvm-remove", "-f", name, status=None)
        world.run("qubes-policy", "--remove", "30-tutorial", status=None)
