"""Applies mutants to a copy of the tree, one at a time, and runs the tests that they name.

The working tree is never written. The copy has no virtual environment; this process's Python runs its tests, with the
copy's ``src`` first on the path.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.mutants.catalogue import ROOT, stale
from tests.mutants.mutant import Mutant

KILLED, SURVIVED, STALE, BROKEN = "killed", "SURVIVED", "stale", "broken"
PARTS = ("src", "tests", "bin", "packaging", "docs", "pyproject.toml", "Makefile")
"""What is copied: the code, the tests, and what some tests read."""
TEST_SECONDS = 120
"""Seconds for one test. A mutant that makes its test hang is killed by this."""
RUN_SECONDS = 600
"""Seconds for all tests of one mutant. A test that blocks even pytest's own limit ends here."""
_FAILED = 1
"""Exit status of pytest when tests have failed. Others mean that it could not run them."""


def run(mutants: Sequence[Mutant], say: Callable[[str], None]) -> dict[str, str]:
    """Try each mutant; its verdict by its id. ``say`` gets a line for each, with the reason where it was not killed."""
    verdicts: dict[str, str] = {}
    with _copy() as tree:
        ready = []
        for mutant in mutants:
            if why := stale(mutant, tree):
                verdicts[mutant.id] = STALE
                say(f"{STALE:9} {mutant.id}: {why}")
            else:
                ready.append(mutant)
        sound = _sound(tree, ready)
        for mutant in ready:
            begin = time.monotonic()
            verdict, why = _try(tree, mutant, sound)
            verdicts[mutant.id] = verdict
            taken = f"{time.monotonic() - begin:.1f} s"
            say(f"{verdict:9} {mutant.id} ({mutant.protects}), {taken}{': ' + why if why else ''}")
    return verdicts


@contextmanager
def _copy() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="mutants-") as directory:
        tree = Path(directory)
        for name in PARTS:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, tree / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy2(source, tree / name)
        yield tree


def _sound(tree: Path, mutants: Sequence[Mutant]) -> set[str]:
    """The named tests that pass on the copy without a mutant. One that is skipped here proves nothing."""
    named = sorted({test for mutant in mutants for test in mutant.tests})
    if not named:
        return set()
    _status, outcomes, _output = _pytest(tree, named, RUN_SECONDS * len(mutants))
    sound = set()
    for test in named:
        mine = [
            (node, outcome) for node, outcome in outcomes if node == test or node.startswith((test + "[", test + "::"))
        ]
        failed = any(outcome == "failed" for _node, outcome in mine)
        ran = {node for node, _outcome in mine} - {node for node, outcome in mine if outcome == "skipped"}
        if ran and not failed:
            sound.add(test)
    return sound


def _try(tree: Path, mutant: Mutant, sound: set[str]) -> tuple[str, str]:
    unsound = [test for test in mutant.tests if test not in sound]
    if unsound:
        return BROKEN, f"{unsound[0]} does not pass without the mutant"
    path = tree / mutant.file
    text = path.read_text()
    changed = text.replace(mutant.old, mutant.new)
    if path.suffix == ".py":
        try:
            compile(changed, str(path), "exec")
        except SyntaxError as error:
            return BROKEN, f"its new text is no Python: {error}"
    path.write_text(changed)
    try:
        status, outcomes, output = _pytest(tree, mutant.tests, RUN_SECONDS, "-x")
    finally:
        path.write_text(text)
    if any(outcome == "failed" for _node, outcome in outcomes) and status == _FAILED:
        return KILLED, ""
    if status == 0:
        return SURVIVED, f"{', '.join(mutant.tests)} passes with it"
    return BROKEN, f"pytest ended with status {status}: {output[-600:]}"


def _pytest(tree: Path, tests: Sequence[str], seconds: float, *words: str) -> tuple[int, list[tuple[str, str]], str]:
    """Run tests of the copy; pytest's exit status, each (node id, outcome), and what was printed."""
    report = tree / "outcomes"
    report.unlink(missing_ok=True)
    argv = [sys.executable, "-m", "pytest", "-p", "tests.mutants.outcomes", f"--timeout={TEST_SECONDS}", *words, *tests]
    environ = {
        **os.environ,
        "PYTHONPATH": f"{tree / 'src'}:{tree}",
        # A .pyc is taken for current by the second of its source, and two mutants of a file can come within one.
        "PYTHONDONTWRITEBYTECODE": "1",
        "MUTANTS_OUTCOMES": str(report),
    }
    process = subprocess.Popen(
        argv, cwd=tree, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        output = f"not over after {seconds:g} s"
    finally:
        # What a failed test has left running is of pytest's own session.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    lines = report.read_text().splitlines() if report.exists() else []
    return process.returncode, [tuple(json.loads(line)) for line in lines], output
