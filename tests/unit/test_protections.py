"""The report of protections, on hosts made of files."""

from __future__ import annotations

from pathlib import Path

import pytest

from casemate.host.protections import protections
from casemate.settings import Settings

SETTINGS = Settings(Path("/s"), Path("/r"), Path("/c"))

GOOD = {
    "sys/devices/system/cpu/vulnerabilities/meltdown": "Not affected\n",
    "sys/devices/system/cpu/vulnerabilities/spectre_v2": "Mitigation: Retpolines\n",
    "sys/devices/system/cpu/smt/active": "0\n",
    "sys/module/kvm_amd/parameters/nested": "0\n",
    "sys/kernel/mm/ksm/run": "0\n",
    "proc/swaps": "Filename Type Size Used Priority\n/dev/dm-1 partition 1 0 -2\n/dev/zram0 partition 1 0 5\n",
    "sys/block/dm-1/dm/uuid": "CRYPT-PLAIN-swap\n",
    "sys/kernel/security/lsm": "lockdown,capability,apparmor\n",
    "proc/sys/kernel/seccomp/actions_avail": "kill_process errno allow\n",
    "sys/kernel/iommu_groups/0/type": "DMA\n",
}


def host(directory: Path, **changes: str | None) -> Path:
    for path, text in {**GOOD, **changes}.items():
        if text is not None:
            (directory / path).parent.mkdir(parents=True, exist_ok=True)
            (directory / path).write_text(text)
    return directory


def missing(directory: Path, acceleration: str | None = "kvm", settings: Settings = SETTINGS) -> dict[str, str]:
    return {p.id: p.why for p in protections(settings, acceleration, base=directory) if not p.present}


HOST_ROWS = {"KVM", "H1", "H2", "H3", "H4", "H5", "V4", "P1"}
"""Rows that depend on the files alone, not on who runs the test."""


def test_good_host_has_them(tmp_path: Path) -> None:
    assert not HOST_ROWS & set(missing(host(tmp_path)))
    system = Settings(Path("/s"), Path("/r"), Path("/c"), hypervisor="system")
    assert "V3" not in missing(tmp_path, settings=system)


@pytest.mark.parametrize(
    ("row", "path", "text", "said"),
    [
        ("H1", "sys/devices/system/cpu/vulnerabilities/l1tf", "Vulnerable\n", "l1tf"),
        ("H1", "sys/devices/system/cpu/vulnerabilities/srso", "Vulnerable: Safe RET, no microcode", "srso"),
        (
            "H1",
            "sys/devices/system/cpu/vulnerabilities/mds",
            "Mitigation: x; SMT Host state unknown, no microcode",
            "mds",
        ),
        ("H2", "sys/devices/system/cpu/smt/active", "1\n", "nosmt"),
        ("H2", "sys/devices/system/cpu/smt/active", None, "does not tell"),
        ("H3", "sys/module/kvm_amd/parameters/nested", "1\n", "kvm_amd.nested=0"),
        ("H4", "sys/kernel/mm/ksm/run", "1\n", ""),
        ("H5", "sys/block/dm-1/dm/uuid", "LVM-abc", "/dev/dm-1"),
        ("H5", "proc/swaps", "Filename\n/dev/sda2 partition 1 0 -2\n", "/dev/sda2"),
        ("V3", "sys/kernel/security/lsm", "capability\n", "neither"),
        ("V4", "proc/sys/kernel/seccomp/actions_avail", None, "seccomp"),
        ("P1", "sys/kernel/iommu_groups/0/type", None, "IOMMU"),
    ],
)
def test_what_is_bad_is_told(tmp_path: Path, row: str, path: str, text: str | None, said: str) -> None:
    before = set(missing(host(tmp_path / "good")))
    after = missing(host(tmp_path / "bad", **{path: text}))
    assert row in after and said in after[row]
    assert set(after) - before <= {row}


@pytest.mark.parametrize("acceleration", ["tcg", None])
def test_emulation_is_told(tmp_path: Path, acceleration: str | None) -> None:
    assert "KVM" in missing(host(tmp_path), acceleration)
