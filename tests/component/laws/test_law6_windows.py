"""Law 6, the Windows half: what lock_windows.py relies on holds under Wine, and the module fits its contract."""

from __future__ import annotations

import ast
import inspect
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from casemate.store import lock_posix
from tests.wine import WINE, end_server, environment

HERE = Path(__file__).parent
COMPILER = shutil.which("x86_64-w64-mingw32-gcc") or shutil.which("x86_64-w64-mingw32-gcc-win32")


@pytest.mark.skipif(WINE is None or COMPILER is None, reason="needs wine64 and gcc-mingw-w64-x86-64-win32")
def test_lockfileex_does_what_we_rely_on(tmp_path: Path) -> None:
    program = tmp_path / "lock.exe"
    subprocess.run([str(COMPILER), "-O1", "-Wall", "-o", str(program), str(HERE / "lockfileex.c")], check=True)
    prefix = tmp_path / "wine"
    done = subprocess.run([str(WINE), str(program), "lock.file"], cwd=tmp_path, env=environment(prefix),
                          capture_output=True, timeout=200)  # fmt: skip
    end_server(prefix)
    assert (done.returncode, done.stdout.split()) == (0, [b"holds"]), done


def test_both_halves_have_the_same_functions() -> None:
    """The Windows module cannot be imported here; its source can be read."""
    source = ast.parse((Path(lock_posix.__file__).with_name("lock_windows.py")).read_text())
    windows = {
        node.name: [arg.arg for arg in node.args.args] for node in ast.walk(source) if isinstance(node, ast.FunctionDef)
    }
    posix = {
        name: list(inspect.signature(function).parameters)
        for name, function in vars(lock_posix).items()
        if inspect.isfunction(function)
    }
    assert windows == posix
    checked = subprocess.run(
        [str(Path(os.sys.executable).with_name("mypy")), "--platform", "win32", "--no-incremental",
         "-p", "casemate.store.lock_windows", "-p", "casemate.store.lock"],
        cwd=HERE.parents[2], capture_output=True, text=True, timeout=250,
    )  # fmt: skip
    wrong = [line for line in checked.stdout.splitlines() if "lock_windows" in line or "store/lock.py" in line]
    assert not wrong and checked.stdout, checked
