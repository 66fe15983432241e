"""Completion, by really pressing Tab: bash and zsh on a terminal, fish by its own command; a daemon behind them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import casemate
from casemate.cli import completion
from tests.builders import short_directory
from tests.fakes.shell import found_by_tools
from tests.terminal import on_terminal

BIN = Path(__file__).resolve().parents[2] / "bin"
SOURCE = Path(casemate.__file__).parents[1]


@pytest.fixture(scope="module")
def state() -> Iterator[Path]:
    """A state whose daemon has two qubes that are halted and one that runs, and the completion of all shells."""
    with pytest.MonkeyPatch.context() as patch, short_directory() as directory, found_by_tools(directory, patch):
        app = casemate.Qubes()
        app.create("deb", "TemplateVM", label="black")
        app.default_template = "deb"
        for name in ("work-mail", "work-bank", "runner"):
            app.create(name, label="blue")
        app["runner"].start()
        app["work-bank"].features["service.cups"] = True
        app["work-bank"].features["vendor"] = "x"
        app["work-bank"].tags.add("money")
        completion.write(directory / "completion")
        (directory / "home").mkdir()
        (directory / "home" / "notes.txt").touch()
        yield directory


def environment(state: Path) -> dict[str, str]:
    return {
        "PATH": f"{BIN}:{os.environ['PATH']}", "CASEMATE_STATE": str(state), "HOME": str(state / "home"),
        "TERM": "dumb", "LC_ALL": "C.UTF-8",
    }  # fmt: skip


SETUP = {
    "bash": (
        ["bash", "--norc", "--noprofile", "-i"],
        "bind 'set bell-style none'",
        "bind 'set completion-query-items 0'",
        "bind 'set enable-bracketed-paste off'",
        "source {state}/completion/bash/casemate",
        r"""show() {{ printf 'LI''NE<%s>\n' "$READLINE_LINE"; }}; bind -x '"\C-xp": show'""",
    ),
    "zsh": (
        ["zsh", "-f", "-i"],
        "unsetopt beep; LISTMAX=1000",
        "fpath=({state}/completion/zsh $fpath); autoload -U compinit; compinit -D -u",
        'show() {{ print -r -- LI"NE<$BUFFER>" >/dev/tty }}; zle -N show; bindkey "^Xp" show',
    ),
}
"""How each shell is called, and what it is told first: no bells, the completion, and ^X p to print the line."""


@contextmanager
def shell(name: str, state: Path) -> Iterator[Callable[[str], str]]:
    """What a line becomes in a shell when Tab is pressed at its end."""
    argv, *lines = SETUP[name]
    with on_terminal(argv, environment(state), state / "home", timeout=30) as child:
        for line in (*lines, "echo REA''DY"):
            child.sendline(line.format(state=state))
        child.expect("READY")  # not what the terminal echoes of the line

        def tab(line: str) -> str:
            child.send(f"\x15{line}\t\x18p")  # ^U first: what was typed before is gone
            child.expect("LINE<(.*?)>")
            assert child.match is not None
            return str(child.match[1])

        yield tab


@pytest.fixture(scope="module")
def bash(state: Path) -> Iterator[Callable[[str], str]]:
    with shell("bash", state) as found:
        yield found


@pytest.fixture(scope="module")
def zsh(state: Path) -> Iterator[Callable[[str], str]]:
    with shell("zsh", state) as found:
        yield found


@pytest.fixture(scope="module")
def fish(state: Path) -> Callable[[str], list[str]]:
    """The candidates that fish shows for a line."""

    def ask(line: str) -> list[str]:
        program = f"source {state}/completion/fish/casemate.fish; complete -C '{line}'"
        done = subprocess.run(["fish", "--no-config", "-c", program], env=environment(state), cwd=state / "home",
                              capture_output=True, text=True, check=True, timeout=20)  # fmt: skip
        return done.stdout.splitlines()

    return ask


LINES = {
    "qvm-start r": "qvm-start r",  # it runs, so it is not offered
    "qvm-start work-m": "qvm-start work-mail ",
    "qvm-start work": "qvm-start work-",
    "qvm-shutdown ": "qvm-shutdown runner ",
    "qvm-tags work-bank l": "qvm-tags work-bank list ",
    "qvm-tags work-bank del mo": "qvm-tags work-bank del money ",
    "qvm-prefs work-bank templ": "qvm-prefs work-bank template",
    "qvm-prefs work-bank template d": "qvm-prefs work-bank template d",
    "qvm-prefs work-bank label oran": "qvm-prefs work-bank label orange ",
    "qvm-prefs work-bank provides_network T": "qvm-prefs work-bank provides_network True ",
    "qvm-features work-bank ven": "qvm-features work-bank vendor ",
    "qvm-service work-bank cu": "qvm-service work-bank cups ",
    "qvm-service work-bank cups of": "qvm-service work-bank cups off ",
    "qvm-volume info work-bank:pri": "qvm-volume info work-bank:private ",
    "qvm-volume ls --pool def": "qvm-volume ls --pool default ",
    "qvm-create --label gr": "qvm-create --label gr",  # gray, green
    "qvm-create --label gree": "qvm-create --label green ",
    "qvm-create --class Stand": "qvm-create --class StandaloneVM ",
    "qvm-ls --raw-l": "qvm-ls --raw-list ",
    "qvm-ls --format=net": "qvm-ls --format=network ",
    "qvm-block l": "qvm-block list ",  # its aliases ls and l are not offered
    "casemate backup sched": "casemate backup schedule ",
    "casemate no-such": "casemate no-such",
    "qvm-notes work-bank --import no": "qvm-notes work-bank --import notes.txt ",
}
"""Lines, and what bash and zsh make of them at Tab."""


@pytest.mark.parametrize("line", LINES)
def test_bash(bash: Callable[[str], str], line: str) -> None:
    assert bash(line) == LINES[line]


@pytest.mark.parametrize("line", LINES)
def test_zsh(zsh: Callable[[str], str], line: str) -> None:
    assert zsh(line).rstrip() == LINES[line].rstrip()


def test_fish(fish: Callable[[str], list[str]]) -> None:
    assert fish("qvm-start ") == ["deb\tTemplateVM, Halted", "work-bank\tAppVM, Halted", "work-mail\tAppVM, Halted"]
    assert fish("qvm-volume info work-bank:pri") == ["work-bank:private"]
    assert fish("qvm-ls --raw-l") == ["--raw-list\tnames only, one a line"]
    assert fish("qvm-notes work-bank --import no") == ["notes.txt"]
    assert fish("casemate no-such") == []


def test_the_printed_script_is_that_of_the_files(state: Path) -> None:
    for shell, name in (("bash", "casemate"), ("zsh", "_casemate"), ("fish", "casemate.fish")):
        done = subprocess.run([BIN / "casemate", "completion", shell], capture_output=True, check=True,
                              env=environment(state))  # fmt: skip
        assert done.stdout == (state / "completion" / shell / name).read_bytes()
    assert (state / "completion/bash/qvm-ls").resolve() == (state / "completion/bash/casemate").resolve()


def test_tab_starts_no_daemon_and_survives_everything(tmp_path: Path) -> None:
    quiet = tmp_path / "state"
    for line in ("qvm-start ", "qvm-volume info a:", "nothing ", "", "qvm-start '", "qvm-ls | qvm-start \\"):
        done = subprocess.run([BIN / "casemate", "__complete", "--line", line], capture_output=True, check=True,
                              env={**environment(quiet)})  # fmt: skip
        assert done.stdout == b"" == done.stderr, line
    assert not quiet.exists()


def test_tab_imports_next_to_nothing(state: Path) -> None:
    """What makes it quick: each of these modules alone takes as long as all that it does."""
    program = (
        f"import sys; sys.path.insert(0, {str(SOURCE)!r}); from casemate.cli import entry; "
        "entry.main(['casemate', '__complete', '--line', 'qvm-start ']); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", program], env=environment(state), capture_output=True,
                          text=True, check=True)  # fmt: skip
    assert "work-mail\tAppVM, Halted" in done.stdout
    modules = set(done.stdout.splitlines()[-1].split())
    assert not modules & {"socket", "json", "re", "argparse", "pathlib", "typing", "casemate.client.transport"}
    assert len([name for name in modules if name.startswith("casemate.")]) < 12
