"""What is in git: nothing of this machine, modules that say what they are, a Makefile that explains itself."""

from __future__ import annotations

import ast
import re
import subprocess
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

import pytest

ROOT = Path(__file__).resolve().parents[2]

PUBLIC = frozenset({
    "deb.debian.org", "security.debian.org", "archive.debian.org", "pypi.org", "files.pythonhosted.org",
    "registry.npmjs.org", "localhost", "127.0.0.1",
})  # fmt: skip
"""Hosts that everybody knows."""

PLACES = ("/work" + "/", "/root" + "/", "/home" + "/runner")
"""Directories of one machine."""

GUEST = frozenset({"src/casemate/host/initrd/init.c"})
"""Programs of a guest before it has its root file system, which they mount on ``/root``."""


@cache
def tracked() -> list[Path]:
    out = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode()
    return [ROOT / name for name in out.split("\0") if name and (ROOT / name).is_file()]


@cache
def texts() -> dict[Path, str]:
    return {path: path.read_text("utf-8", "replace") for path in tracked()}


def configured_hosts() -> set[str]:
    """The hosts from which this machine takes packages, as its package managers are set up."""
    found: list[str] = []
    for argv in (["apt-config", "dump"], ["pip", "config", "list"], ["npm", "config", "list"]):
        try:
            found.append(subprocess.run(argv, capture_output=True, text=True, timeout=60).stdout)
        except OSError:
            continue
    apt = Path("/etc/apt")
    for path in [apt / "sources.list", *apt.glob("sources.list.d/*"), *apt.glob("auth.conf.d/*")]:
        if path.is_file():
            found.append(path.read_text("utf-8", "replace"))
    hosts = {urlsplit(url).hostname for text in found for url in re.findall(r"https?://[^\s'\"\]]+", text)}
    return {host for host in hosts if host} - PUBLIC


def test_no_file_names_the_hosts_of_this_machine() -> None:
    for host in configured_hosts():
        naming = [str(path.relative_to(ROOT)) for path, text in texts().items() if host in text]
        assert not naming, f"{host} is named in {naming}"


@pytest.mark.parametrize("place", PLACES)
def test_no_file_names_a_directory_of_this_machine(place: str) -> None:
    # A letter, digit or dot before it makes it a part of another path.
    pattern = re.compile(rf"(?<![\w.}}\])-]){re.escape(place)}")
    naming = {str(path.relative_to(ROOT)) for path, text in texts().items() if pattern.search(text)}
    assert not naming - GUEST


def test_modules_start_by_saying_what_they_are() -> None:
    modules = [path for path in tracked() if path.suffix == ".py" and path.read_text()]
    assert len(modules) > 100
    for path in modules:
        name = path.relative_to(ROOT)
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree), f"{name} has no docstring"
        assert tree.body[0].lineno == 1, f"{name} does not start with its docstring"
        assert len((ast.get_docstring(tree) or "").split("\n")[0]) > 15, f"{name} says nothing"


def test_public_things_have_docstrings() -> None:
    for path in tracked():
        if path.suffix != ".py" or ROOT / "src" not in path.parents:
            continue
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.name[0] != "_":
                assert ast.get_docstring(node), f"{path.relative_to(ROOT)}: {node.name} has no docstring"


def test_make_help_lists_every_target() -> None:
    text = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z][a-z-]*):(?!=)", text, re.M))
    shown = subprocess.run(
        ["make", "-s", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert {line.split()[0] for line in shown.splitlines()} == targets
    declared = re.search(r"^\.PHONY: (.*)$", text, re.M)
    assert declared is not None and set(declared[1].split()) == targets
    assert text.split("\nhelp:")[0].count("\n") < 10, "help is the first target"


def test_licence_is_there_and_named() -> None:
    assert "GNU GENERAL PUBLIC LICENSE" in (ROOT / "LICENSE").read_text()[:200]
    assert "GPL-2.0-or-later" in (ROOT / "pyproject.toml").read_text()
