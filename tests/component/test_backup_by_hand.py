"""The way back without us that docs/howto/backup.md describes, word for word."""

from __future__ import annotations

import io
import os
import re
import subprocess
from pathlib import Path

import pytest

from casemate.backup.container import Cost
from casemate.backup.tar_writer import FileContent
from casemate.backup.writer import File, Writer, bytes_file
from tests import backup_samples as samples

PAGE = Path(__file__).parents[2] / "docs/howto/backup.md"


def recover(directory: Path, backup: bytes, passphrase: str, filter_program: str = "zstd") -> None:
    """Run what the page says."""
    script = re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.S)[-1]
    if filter_program != "zstd":
        script = script.replace("zstd -dc", f"{filter_program} -dc")
    (directory / "backup").write_bytes(backup)
    (directory / "out").mkdir()
    subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], cwd=directory / "out", check=True, timeout=200,
        env={**os.environ, "BACKUP": str(directory / "backup"), "PASSPHRASE": passphrase},
    )  # fmt: skip


def test_our_backup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from casemate.backup import writer

    monkeypatch.setattr(writer, "CHUNK", 200_000)  # so that one file has several
    image = tmp_path / "image"
    with open(image, "wb") as file:
        file.truncate(50_000_000)
        for at in (0, 10_000_000, 49_000_000):
            file.seek(at)
            file.write(os.urandom(300_000))
    fd = os.open(image, os.O_RDONLY)
    out = io.BytesIO()
    made = Writer(out, b"pass word", "zstd", Cost(10))
    try:
        volume = File("vm7/private.img", lambda: (FileContent(fd), lambda: None), large=True)
        made.run(b"<qubes/>", [volume, bytes_file("vm7/notes.txt", b"note")])
    finally:
        made.close()
        os.close(fd)
    recover(tmp_path, out.getvalue(), "pass word")
    found = tmp_path / "out"
    assert (found / "vm7/private.img").read_bytes() == image.read_bytes()
    assert (found / "vm7/notes.txt").read_text() == "note"
    assert (found / "qubes.xml").read_text() == "<qubes/>"


def test_upstreams_backup(tmp_path: Path) -> None:
    recover(tmp_path, samples.files()["v4-gzip-multichunk.qbk"], "correct horse", "gzip")
    assert (tmp_path / "out/vm3/private.img").stat().st_size == 1 << 20
