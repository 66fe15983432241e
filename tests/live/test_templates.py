"""Templates of another Debian release, with a recipe, built anew, beside the host's own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from casemate.cli.template import default_suite
from tests.live.world import TEMPLATE, World

pytestmark = pytest.mark.live

FULL = os.environ.get("CASEMATE_FULL", "") not in ("", "0")
OTHER = "trixie" if default_suite() != "trixie" else "bookworm"
NAME = "other"
RECIPE = f"""
suite = "{OTHER}"
packages = ["hello"]
commands = ["echo made by a command > /etc/made", "ls /etc/casemate-test/file >> /etc/made"]

[[files]]
path = "/etc/casemate-test/file"
mode = "0750"
text = "made of text\\n"

[[files]] # in a directory that files of ours go to as well
path = "/usr/lib/qubes/of-the-recipe"
text = ""
"""


@pytest.fixture(scope="module")
def other(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A halted qube on a template of another suite."""
    recipe = tmp_path_factory.mktemp("recipe") / "recipe.toml"
    recipe.write_text(RECIPE)
    world.run("casemate", "template", "build", "--recipe", str(recipe), "--name", NAME, timeout=1800)
    world.run("qvm-create", "--label", "green", "--template", NAME, "elsewhere")
    yield "elsewhere"
    world.run("qvm-kill", "elsewhere", status=None)
    world.run("qvm-remove", "-f", "elsewhere", NAME, status=None)


@pytest.mark.skipif(not FULL, reason="two minutes for a second suite; CASEMATE_FULL=1")
@pytest.mark.timeout(900)
def test_a_template_of_another_suite_with_a_recipe_runs_and_is_built_anew(
    world: World, other: str, usable: str, tmp_path: Path
) -> None:
    listed = {
        line.split()[0]: line.split() for line in world.run("casemate", "template", "list").stdout.decode().splitlines()
    }
    assert listed[NAME][1:4] == [OTHER, "lean", "today"] and listed[NAME][-1] == "hello"
    assert listed[TEMPLATE][1] == default_suite() and listed[TEMPLATE][-2] != listed[NAME][-2]  # each its own kernel
    # Upstream's manager offers the kernels of this pool.
    kernels = world.run("qubesd-query", "-e", "dom0", "admin.pool.volume.List", "dom0", "linux-kernel").stdout
    assert {listed[NAME][-2], listed[TEMPLATE][-2]} <= set(kernels.removeprefix(b"0\0").decode().split())
    world.run("qvm-start", other)
    assert f"VERSION_CODENAME={OTHER}" in world.inside(other, "cat /etc/os-release").splitlines()
    assert world.inside(other, "hello") == "Hello, world!"
    assert world.inside(other, "cat /etc/made") == "made by a command\n/etc/casemate-test/file"
    assert world.inside(other, "cat /etc/casemate-test/file; stat -c %a:%U /etc/casemate-test/file", "root") == (
        "made of text\n750:root"
    )
    assert world.inside(other, "uname -r") == listed[NAME][-2].removeprefix("debian-")
    assert f"VERSION_CODENAME={default_suite()}" in world.inside(usable, "cat /etc/os-release").splitlines()
    world.run("qvm-shutdown", "--wait", other)

    # The same recipe once more, with today's packages; what was there before can be had back.
    before = world.run("qvm-features", NAME, "template-buildtime").stdout
    world.run("casemate", "template", "rebuild", NAME, timeout=1800)
    assert world.run("qvm-features", NAME, "template-buildtime").stdout > before
    assert b"revert" in world.run("qvm-volume", "info", f"{NAME}:root").stdout
    world.run("qvm-start", other)
    assert world.inside(other, "hello; cat /etc/made") == "Hello, world!\nmade by a command\n/etc/casemate-test/file"
    world.run("qvm-shutdown", "--wait", other)
    world.run("qvm-volume", "revert", f"{NAME}:root")
    world.run("qvm-start", other)
    assert world.inside(other, "hello") == "Hello, world!"


def test_a_failed_build_tells_the_cause_and_leaves_nothing(world: World) -> None:
    before = {path.name for path in (world.settings.cache / "templates").iterdir() if path.name[0] != "."}
    done = world.run("casemate", "template", "build", "--name", "bad", "--include", "no-such-package",
                     status=1, timeout=600)  # fmt: skip
    said = done.stderr.decode().splitlines()
    failed = next(i for i, line in enumerate(said) if "failed" in line)
    assert "Unable to locate package no-such-package" in said[failed + 1]
    assert said[-1].startswith("The whole output is in ")
    assert "no-such-package" in Path(said[-1].removeprefix("The whole output is in ")).read_text()
    assert not [line for line in said if "customize-hook" in line or "mkdir" in line]  # nothing of our scripts
    assert "bad" not in world.qubes()
    after = {path.name for path in (world.settings.cache / "templates").iterdir() if path.name[0] != "."}
    assert after <= before


def test_templates_that_cannot_be_built_anew_say_why(world: World, usable: str) -> None:
    assert b"is no template" in world.run("casemate", "template", "rebuild", usable, status=1).stderr
    done = world.run("casemate", "template", "build", "--name", TEMPLATE, "--include", "hello", status=1)
    assert f"There is a template {TEMPLATE} with another recipe".encode() in done.stderr
    assert b"is there already" in world.run("casemate", "template", "build").stdout
