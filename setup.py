"""The programs of a wheel: those of ``bin``, so that clone, Debian package and wheel have the same. All else stands in
pyproject.toml."""

from pathlib import Path

from setuptools import setup

# What has an entry point of its own; every other name is a tool, which cli/entry.py finds by the name it is called by.
OWN = {
    "casemated": "casemate.daemon.start:main",
    "casemate-qrexecd": "casemate.vchan.daemon:main",
    "casemate-web": "casemate.web.start:main",
}

names = sorted(path.name for path in (Path(__file__).parent / "bin").iterdir())
setup(
    entry_points={"console_scripts": [f"{name} = {OWN.get(name, 'casemate.cli.entry:main')}" for name in names]},
)
