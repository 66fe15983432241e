"""Manual pages: one for each tool, without a warning of the formatter, found by apropos in a private place."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from casemate.cli import declarations, manual
from casemate.host import agent_package

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of manual pages."""
    directory = tmp_path_factory.mktemp("man")
    manual.write(directory)
    return directory


def said(*argv: object, **options: str) -> str:
    environment = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "MANWIDTH": "80", **options}
    done = subprocess.run([str(word) for word in argv], capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0 and not done.stderr, (argv, done.returncode, done.stderr)
    return done.stdout


def test_every_program_has_a_page_with_all_its_options(pages: Path) -> None:
    there = {path.name.removesuffix(".1") for path in (pages / "man1").iterdir()}
    assert there >= {path.name for path in (ROOT / "bin").iterdir()} | {"casemate", *declarations.names()}
    for name in ("casemate", *declarations.names()):
        text = (pages / "man1" / f"{name}.1").read_text().replace("\\-", "-")
        for command in declarations.commands_of(name):
            for flag in command.options:
                assert flag in text, (command.path, flag)
            assert " ".join(command.path[1:]) in text


def test_formatters_find_nothing_to_warn_of(pages: Path) -> None:
    for path in sorted([*(pages / "man1").iterdir(), *(pages / "guest" / "man1").iterdir()]):
        said("groff", "-ww", "-man", "-Tutf8", "-z", path)
    # man adds macros and warnings of its own: tried on the longest and on one with odd characters
    for name in ("casemate", "qvm-run", "qvm-create"):
        assert "SYNOPSIS" in said("man", "--warnings", "-l", pages / "man1" / f"{name}.1")


def test_tools_inside_qubes_have_pages_apart(pages: Path) -> None:
    """A guest's tool may have the name of one of the host: their pages are different ones."""
    there = {path.name.removesuffix(".1") for path in (pages / "guest" / "man1").iterdir()}
    installed = {
        Path(file.path).name
        for file in agent_package.guest_files("systemd", None, b"", b"")
        if file.path.startswith("/usr/bin/")
    }
    assert there == installed
    text = " ".join(said("man", "-l", pages / "guest" / "man1" / "qvm-copy-to-vm.1").split())
    assert "inside a qube" in text and "QUBE FILE" in text


def test_text_that_looks_like_a_request_is_text(tmp_path: Path) -> None:
    page = tmp_path / "x.1"
    page.write_text(
        f".TH X 1\n.SH NAME\nx \\- y\n.SH T\n{manual.escape('.so /etc/passwd')}\n{manual.escape(chr(92) + 'n -- é')}\n"
    )
    assert ".so /etc/passwd \\n -- \u00e9" in said("man", "--warnings", "-l", page)


def test_apropos_finds_tools(pages: Path) -> None:
    for path in (pages / "man1").iterdir():
        assert re.fullmatch(rf'{path}: "{path.name[:-2]} - .+"\n', said("lexgrog", path))
    config = pages / "manpath.config"
    config.write_text(f"MANDB_MAP {pages} {pages}/index\n")
    said("mandb", "--quiet", "--create", "-C", config, pages)
    found = said("apropos", "-C", config, "-M", pages, "volumes")
    assert re.search(r"^qvm-volume \(1\) +- show and change the volumes of qubes$", found, re.M)
    assert said("whatis", "-C", config, "-M", pages, "casemate").startswith("casemate (1)")


def test_pages_are_the_same_bytes_each_time(pages: Path, tmp_path: Path) -> None:
    manual.write(tmp_path)
    for path in (pages / "man1").iterdir():
        assert path.read_bytes() == (tmp_path / "man1" / path.name).read_bytes()
