"""Recipes: what a person writes, what travels, what is refused and in which words."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from casemate.cli.template import add_to, default_suite, read_recipe, wanted_recipe
from casemate.wire import os_release
from casemate.wire.errors import ValueInvalidError
from casemate.wire.recipe import MAX_BYTES, Recipe, RecipeFile, decode, from_fields


def options(*words: str) -> argparse.Namespace:
    """A command line of ``casemate template build``."""
    parser = argparse.ArgumentParser()
    add_to(parser.add_subparsers())
    return parser.parse_args(["template", "build", *words])


def test_a_recipe_travels_unchanged_and_equal_recipes_have_equal_bytes() -> None:
    recipe = Recipe("sid", "systemd", ("git", "g++"), (RecipeFile("/etc/x", b"\0\xff", 0o4755),), ("echo 'ä'",))
    assert decode(recipe.encode()) == recipe
    assert recipe.encode() == decode(recipe.encode()).encode()


def test_templates_are_named_after_what_they_are() -> None:
    assert Recipe("bookworm").default_name == "debian-12"
    assert Recipe("trixie", "systemd").default_name == "debian-13-systemd"
    assert Recipe("sid").default_name == "debian-sid"


@pytest.mark.parametrize(
    ("text", "suite"),
    [
        ('ID=debian\nVERSION_CODENAME="trixie"\n', "trixie"),
        ("ID=debian\nVERSION_CODENAME=bookworm\n", "bookworm"),
        ("ID=debian\nVERSION_CODENAME=buster\n", "trixie"),
        ("ID=ubuntu\nID_LIKE=debian\nVERSION_CODENAME=noble\n", "trixie"),
        ("# nothing\n\nnot a field\n", "trixie"),
    ],
)
def test_the_default_suite_is_the_hosts_own_else_stable(tmp_path: Path, text: str, suite: str) -> None:
    (tmp_path / "os-release").write_text(text)
    assert default_suite(tmp_path / "os-release") == suite
    assert default_suite(tmp_path / "missing") == "trixie"


def test_os_release_is_read_as_its_manual_says() -> None:
    assert os_release.parse("A='x y'\n#B=1\nC\nD=\n") == {"A": "x y", "D": ""}


def test_a_recipe_file_with_options_over_it(tmp_path: Path) -> None:
    (tmp_path / "motd").write_bytes(b"hello\n")
    path = tmp_path / "dev.toml"
    path.write_text(
        'suite = "bookworm"\nkind = "systemd"\npackages = ["git"]\ncommands = ["true"]\n'
        '[[files]]\npath = "/etc/motd"\nsource = "motd"\n'
        '[[files]]\npath = "/usr/local/bin/x"\nmode = "0755"\ntext = "#!/bin/sh\\n"\n'
    )
    made = wanted_recipe(
        options("--recipe", str(path), "--suite", "trixie", "--include", "jq,less", "--include", "vim")
    )
    assert made == Recipe(
        "trixie",
        "systemd",
        ("git", "jq", "less", "vim"),
        (RecipeFile("/etc/motd", b"hello\n"), RecipeFile("/usr/local/bin/x", b"#!/bin/sh\n", 0o755)),
        ("true",),
    )
    plain = wanted_recipe(options())
    assert plain == Recipe(default_suite()) and not plain.extras


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"suite": "buster"}, "No such suite: 'buster'; there are bookworm"),
        ({"suite": "trixie", "kind": "fat"}, "lean or systemd, not 'fat'"),
        ({"suite": "trixie", "packages": ["--allow"]}, "'--allow' is not the name of a Debian package"),
        ({"suite": "trixie", "packages": "git"}, "packages of a recipe must be a list"),
        ({"suite": "trixie", "comands": []}, "'comands' is unknown in a recipe"),
        ({"suite": "trixie", "commands": [" "]}, "A command of a recipe is empty"),
        ({"suite": "trixie", "files": [{"path": "etc/x"}]}, "path must be absolute"),
        ({"suite": "trixie", "files": [{"path": "/etc/../x"}]}, "path must be absolute"),
        ({"suite": "trixie", "files": [{"path": "/x", "mode": "9"}]}, "mode of /x must be octal"),
        ({"suite": "trixie", "files": [{"path": "/x", "mode": "77777"}]}, "mode of /x must be octal"),
        ({"suite": "trixie", "files": [{"path": "/x", "owner": "me"}]}, "'owner' is unknown in a file"),
        ({"suite": 1}, "must be words"),
        ([], "must be a table"),
    ],
)
def test_wrong_recipes_are_refused_by_name(fields: object, said: str) -> None:
    with pytest.raises(ValueInvalidError) as caught:
        from_fields(fields)
    assert said in str(caught.value)


def test_bytes_that_are_no_recipe_and_recipes_too_large() -> None:
    for data in (b"", b"lean", b"[" * 5000, b"{}", b"\xff"):
        with pytest.raises(ValueInvalidError):
            decode(data)
    with pytest.raises(ValueInvalidError, match=f"{MAX_BYTES} are allowed"):
        Recipe("trixie", files=(RecipeFile("/x", bytes(MAX_BYTES)),)).encode()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = ", "dev.toml: "),
        ('[[files]]\npath = "/x"\n', "needs either text"),
        ('[[files]]\npath = "/x"\ntext = "a"\nsource = "b"\n', "needs either text"),
        ('[[files]]\npath = "/x"\nsource = "missing"\n', "missing: No such file"),
    ],
)
def test_wrong_recipe_files_are_named(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "dev.toml"
    path.write_text(text)
    with pytest.raises(ValueInvalidError) as caught:
        read_recipe(path)
    assert said in str(caught.value)
    with pytest.raises(ValueInvalidError, match="No such file"):
        read_recipe(tmp_path / "other.toml")
