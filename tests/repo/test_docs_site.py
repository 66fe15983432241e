"""The docs as a site: built without a warning, with every page, and nothing that is loaded from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(
    not os.environ.get("CASEMATE_FULL"), reason="installs the builder of the site; CASEMATE_FULL=1"
)


class _Loaded(HTMLParser):
    """Collects what a page makes a browser load. Links that a person follows are not that."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if value and (name in ("src", "srcset", "data") or (tag == "link" and name == "href")):
                self.found.append(value)


def test_the_site_is_built_and_stands_alone() -> None:
    done = subprocess.run(["make", "-s", "docs-site"], cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stderr + done.stdout
    site = ROOT / "build" / "site"
    for page in (ROOT / "docs").rglob("*.md"):
        name = page.relative_to(ROOT / "docs").with_suffix(".html")
        assert (site / (name.with_name("index.html") if name.stem == "README" else name)).exists(), name
    for path in site.rglob("*.html"):
        loaded = _Loaded()
        loaded.feed(path.read_text())
        assert loaded.found and not [where for where in loaded.found if re.match(r"(https?:)?//", where)], path
    for path in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//|@import", path.read_text()), path
