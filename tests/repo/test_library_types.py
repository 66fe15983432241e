"""The library as a type checker of somebody else sees it: the how-to's code is sound, and what it gets is typed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(not os.environ.get("CASEMATE_FULL"), reason="runs mypy anew; CASEMATE_FULL=1")

REVEALED = {
    'app["work"]': "casemate.library.qube.Qube",
    'app["work"].run(["id"]).stdout': "builtins.bytes",
    'app["work"].firewall.rules': "builtins.list[builtins.dict[builtins.str, builtins.str]]",
    "next(app.events()).details": "builtins.dict[builtins.str, builtins.str]",
    'app.disposable("dvm").__enter__()': "casemate.library.qube.Qube",
    "casemate.open_store()": "casemate.store.store.Store",
}


def test_scripts_are_checked(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "howto" / "scripts.md").read_text()
    script = tmp_path / "script.py"
    code = "".join(re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S))
    script.write_text(code + "".join(f"reveal_type({what})\n" for what in REVEALED))
    done = subprocess.run([sys.executable, "-m", "mypy", "--strict", "--config-file", "/dev/null", str(script)],
                          cwd=tmp_path, capture_output=True, text=True,
                          env={**os.environ, "MYPYPATH": str(ROOT / "src")})  # fmt: skip
    told = re.findall(r'Revealed type is "(.*)"', done.stdout)
    assert told == list(REVEALED.values()), done.stdout
    wrong = [line for line in done.stdout.splitlines() if " error: " in line and "script.py" in line]
    assert not wrong, wrong
