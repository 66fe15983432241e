"""The real daemon on states of other versions: older ones are served, a newer one is refused with the reason."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from casemate.cli.clean import clean_state
from casemate.client.transport import Transport
from casemate.store import layout
from casemate.wire.errors import CasemateError
from tests.builders import settings_in, short_directory

SAMPLES = Path(__file__).parents[1] / "fixtures" / "states"  # tests/unit/test_older_states.py says what they are


@pytest.mark.parametrize("name", ["no-format", "format-1-all-revisions", "format-1"])
def test_an_older_state_is_served_and_can_be_changed(name: str) -> None:
    with short_directory() as directory:
        settings = settings_in(directory, prefix="casemate-old-")
        shutil.copy(SAMPLES / f"{name}.xml", settings.store_file)
        transport = Transport(settings)
        try:
            names = {line.split()[0].decode() for line in transport.call("admin.vm.List").splitlines()}
            assert {"dom0", "deb", "net", "work", "base", "alone"} <= names
            assert transport.call("admin.vm.property.Get", "memory", "work").endswith(b" 500")
            transport.call("admin.vm.property.Set", "memory", "work", b"700")
            assert transport.call("admin.vm.property.Get", "memory", "work").endswith(b" 700")
        finally:
            clean_state(settings)


def test_a_newer_state_is_refused_and_stays_as_it_is() -> None:
    with short_directory() as directory:
        settings = settings_in(directory, prefix="casemate-old-")
        newer = (SAMPLES / "format-1.xml").read_bytes()
        newer = newer.replace(b'format="%d"' % layout.FORMAT, b'format="%d"' % (layout.FORMAT + 1), 1)
        settings.store_file.write_bytes(newer)
        try:
            with pytest.raises(CasemateError, match=f"newer Casemate .format {layout.FORMAT + 1}; this one knows"):
                Transport(settings).call("admin.vm.List")
            assert settings.store_file.read_bytes() == newer
        finally:
            clean_state(settings)
