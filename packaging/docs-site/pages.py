"""Hooks of mkdocs: the order of the pages, and links of pages to files outside the docs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

SECTIONS = {"howto": "How-to", "reference": "Reference", "explanation": "Explanation", "decisions": "Decisions"}
_OUTSIDE = re.compile(r"\[([^\]]+)\]\((?:\.\./)+([A-Z]+\.md)(#[^)]*)?\)")


def on_config(config: Any) -> Any:
    """Every page there is, in the order in which people come to need them; a new page needs no entry anywhere."""
    docs = Path(config["docs_dir"])
    config["nav"] = ["index.md", {"Tutorial": "tutorial.md"}]
    for directory, title in SECTIONS.items():
        pages = sorted((docs / directory).glob("*.md"), key=lambda path: (path.name != "README.md", path.name))
        config["nav"].append({title: [str(path.relative_to(docs)) for path in pages]})
    config["nav"].append({"Glossary": "glossary.md"})
    return config


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """README and HACKING are read in the source: what links to them is text here."""
    return _OUTSIDE.sub(lambda found: f"{found[1]} (`{found[2]}`)", markdown)
