"""packaging/setup.sh on hosts that are not Debian, played by another /etc/os-release in a mount namespace."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")


def setup(tmp_path: Path, os_release: str, hidden: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run the script where the host says that it is another system, and where some programs are not there."""
    (tmp_path / "os-release").write_text(os_release)
    (tmp_path / "empty").touch()
    script = f"mount --bind {tmp_path}/os-release /etc/os-release\n"
    script += "".join(f"mount --bind {tmp_path}/empty {path}\n" for path in hidden)
    # apt would be an escape: nothing may be installed by a test.
    script += f"mount --bind {tmp_path}/empty /usr/bin/apt-get\nexec {ROOT}/packaging/setup.sh\n"
    # Where apt fails the script leaves its output for the person.
    return subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-euc", script], capture_output=True, text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )  # fmt: skip


def test_another_distribution_goes_on_when_all_is_there(tmp_path: Path) -> None:
    done = setup(tmp_path, "ID=fedora\nVERSION_ID=43\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("os_release", "said"),
    [
        ("ID=fedora\n", "dnf install mmdebstrap e2fsprogs"),
        ('ID=rocky\nID_LIKE="rhel centos fedora"\n', "dnf install mmdebstrap e2fsprogs"),
        ("ID=arch\n", "pacman -S mmdebstrap e2fsprogs"),
        ('ID="opensuse-tumbleweed"\nID_LIKE="opensuse suse"\n', "zypper install mmdebstrap e2fsprogs"),
        ("ID=nixos\n", "nix-shell -p mmdebstrap e2fsprogs"),
        ("ID=void\n", "for these of Debian: mmdebstrap e2fsprogs"),
    ],
)
def test_what_is_missing_is_named_in_the_distributions_terms(tmp_path: Path, os_release: str, said: str) -> None:
    done = setup(tmp_path, os_release, ("/usr/bin/mmdebstrap", "/usr/sbin/mke2fs"))
    assert done.returncode == 1 and said in done.stderr, done.stderr
    assert "nobody has tried Casemate yet" in done.stderr


def test_a_derivative_of_debian_uses_apt(tmp_path: Path) -> None:
    done = setup(tmp_path, "ID=ubuntu\nID_LIKE=debian\n", ("/usr/bin/mmdebstrap",))
    assert done.returncode == 1 and done.stdout == "Installing Debian packages: mmdebstrap\n"
    assert "apt-get failed" in done.stderr
