"""Backups that are read in a real disposable: good ones, and by a disposable that was taken over."""

from __future__ import annotations

# ruff: noqa: F401, F811  (fixtures of another file are arguments here)
import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from casemate.cli.restoring import restore_from
from casemate.client import paranoid
from casemate.client.qubes import Qubes
from casemate.client.transport import Transport
from casemate.wire.errors import CasemateError
from tests import backup_samples as samples
from tests.builders import wait_for
from tests.live.test_backup import PLACE, gone, lab, passphrase
from tests.live.world import TEMPLATE, World

pytestmark = pytest.mark.live

LAX = "* * @anyvm @anyvm allow\n* * @anyvm @adminvm allow\n* * @anyvm @dispvm allow\n"
"""The worst that a user can say: every qube may call everything."""


@pytest.fixture(scope="module")
def management(world: World) -> Iterator[str]:
    """The template of the disposables that read."""
    world.run("qvm-create", "--label", "black", "--prop", "template_for_dispvms=True", "--prop", "netvm=", "mgmt")
    world.run("qvm-features", "mgmt", "preload-dispvm-max", "0")
    world.run("qubes-prefs", "management_dispvm", "mgmt")
    world.run("qubes-prefs", "default_template", TEMPLATE)
    yield "mgmt"
    world.run("qubes-prefs", "management_dispvm", "")
    wait_for(lambda: world.run("qvm-remove", "-f", "mgmt", status=None).returncode == 0)


def test_a_backup_is_restored_by_a_disposable(
    world: World, lab: str, usable: str, management: str, passphrase: str, tmp_path: Path
) -> None:  # fmt: skip
    before = set(world.qubes()) - {lab}
    noise = world.inside(lab, "sha256sum noise")
    world.run("qvm-shutdown", "--wait", lab)
    world.run("qvm-tags", lab, "add", "friend")
    world.run("qvm-notes", lab, "--set", "remember", status=None)
    world.run("qvm-firewall", lab, "add", "--before", "0", "accept", "dsthost=192.0.2.1", "proto=tcp", "dstports=443")
    rules = world.run("qvm-firewall", lab, "list").stdout
    backup = str(tmp_path / "backup")
    world.run("qvm-backup", "-y", "-p", passphrase, backup, lab)
    tool = ["qvm-backup-restore", "--paranoid-mode", "-p", passphrase]
    assert b"whole" in world.run(*tool, "--verify-only", backup).stdout

    # What stands in the way is found as ever, and no disposable stays.
    done = world.run(*tool, "-y", backup, status=1)
    assert b"lab is there already" in done.stderr
    wait_for(lambda: set(world.qubes()) == before | {lab})
    gone(world, lab)
    done = world.run(*tool, "-y", backup)
    assert b"whole" in done.stdout and b"it has the tags friend" in done.stdout
    assert b"restored-from-backup-at-" in world.run("qvm-tags", lab, "list").stdout
    assert world.run("qvm-firewall", lab, "list").stdout == rules
    world.run("qvm-start", lab)
    assert world.inside(lab, "cat note") == "meanwhile"
    assert world.inside(lab, "sha256sum noise") == noise
    wait_for(lambda: set(world.qubes()) == before | {lab})

    # From a qube, which is given no answer by what reads.
    with open(backup, "rb") as file:
        world.run("qvm-run", "--pass-io", usable, f"cat > {PLACE}/backup", data=file.read())
    assert b"whole" in world.run(*tool, "--verify-only", "-d", usable, f"{PLACE}/backup").stdout
    done = world.run(*tool, "--verify-only", "-d", usable, f"{PLACE}/nothing", status=1)
    assert b"does not give the backup" in done.stderr
    world.inside(usable, f"rm {PLACE}/backup")
    wrong = tmp_path / "wrong"
    wrong.write_text("no\n")
    done = world.run("qvm-backup-restore", "--paranoid-mode", "-p", str(wrong), "--verify-only", backup, status=1)
    assert b"passphrase is wrong" in done.stderr
    with world.start(*tool, "--verify-only", "-", stdin=-1) as killed:
        wait_for(lambda: set(world.qubes()) != before | {lab}, 60)
        killed.kill()
    wait_for(lambda: set(world.qubes()) == before | {lab}, 60)


def test_a_backup_of_upstream_is_read_there(world: World, management: str, tmp_path: Path) -> None:
    # One of upstream's, one whose store is hostile, one whose key would cost a tebibyte of memory.
    for name in ("v4-zstd.qbk", "v4-c-xml-entity-bomb.qbk", "v4-d-kdf-mem-1TiB.qbk"):
        path, secret = tmp_path / name, tmp_path / "secret"
        path.write_bytes(samples.files()[name])
        secret.write_text(samples.manifest()[name]["passphrase"] + "\n")
        good = samples.manifest()[name]["expect"] == "ok"
        world.run("qvm-backup-restore", "--paranoid-mode", "--verify-only", "-p", str(secret), str(path),
                  status=0 if good else 1)  # fmt: skip


HOSTILE = r"""
import json, os, struct, subprocess, sys
def take(count):
    data = b""
    while len(data) < count:
        data += os.read(0, count - len(data))
    return data
take(int.from_bytes(take(4), "big"))
_kind, size = struct.unpack(">cI", take(5))
take(size)
found = {"net": sorted(os.listdir("/sys/class/net"))}
for target, service in (
    ("VICTIM", "admin.vm.List"), ("dom0", "admin.vm.List"), ("VICTIM", "admin.vm.feature.Set+broken"),
    ("VICTIM", "admin.vm.Remove"), ("VICTIM", "qubes.VMShell"), ("dom0", "admin.vm.Create.AppVM"),
    ("@dispvm", "qubes.OpenURL"), ("@default", "qubes.Filecopy"), ("dom0", "qubes.GetDate"),
):
    done = subprocess.run(["/usr/bin/qrexec-client-vm", target, service], stdin=subprocess.DEVNULL, capture_output=True)
    found[target + " " + service] = done.returncode
def say(kind, body):
    os.write(1, struct.pack(">cI", kind, len(body)) + body)
victim = {"name": "VICTIM", "class": "AppVM", "size": 0, "properties": {"label": "red", "template": "TEMPLATE",
    "autostart": "True", "netvm": ""}, "features": {"internal": "1", "found": json.dumps(found)},
    "tags": ["created-by-x", "backup-restore-mgmt", "friend"], "devices": 0, "volumes": [["private", 1 << 20, True]]}
say(b"c", json.dumps({"home": False, "qubes": [victim, {**victim, "name": "fresh"}]}).encode())
while True:
    kind, size = struct.unpack(">cI", take(5))
    take(size)
    if kind == b"R":
        break
for frame in FRAMES:
    say(frame[0].encode(), frame[1].encode("latin-1"))
sys.stdin.read()
"""


def lasting(world: World) -> list[str]:
    """The qubes but for disposables, which may still be on their way out."""
    return [one for one in world.qubes() if not one.startswith("disp")]


def test_a_disposable_that_was_taken_over_reaches_nothing(
    world: World, usable: str, management: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lax = world.settings.policy_dir / "30-lax.policy"
    lax.write_text(LAX)
    qubes = Qubes(Transport(world.settings))
    before = lasting(world)
    facts = [world.run(*words, usable).stdout for words in (("qvm-prefs",), ("qvm-features",), ("qvm-tags",))]

    def restored(*frames: tuple[str, str], **options: object) -> int:
        words = HOSTILE.replace("VICTIM", usable).replace("TEMPLATE", TEMPLATE).replace("FRAMES", repr(frames))
        monkeypatch.setattr(paranoid, "WORDS", ("/usr/bin/python3", "-I", "-S", "-c", words))
        given = {
            "VMNAME": [], "exclude": [], "skip_conflicting": True, "rename_conflicting": False, "ignore_missing": False,
            "skip_broken": False, "keep_damaged": True, "paranoid_mode": True, "yes": True, "quiet": True,
        }  # fmt: skip
        with paranoid.opened(qubes, lambda _count: b"", "tar", b"secret") as backup:
            return restore_from("test", argparse.Namespace(**{**given, **options}), backup, qubes)

    try:
        for frames in (
            [("v", json.dumps([usable, "private", 512]))],
            [("v", json.dumps(["fresh", "root", 512]))],
            [("s", json.dumps([usable, "notes.txt"]) + "\nx")],
            [("v", json.dumps(["fresh", "private", 512])), ("w", "\0" * 7 + "\2" + "x" * 512)],
        ):
            with pytest.raises(CasemateError):
                restored(*frames)
            assert lasting(world) == before
        # It may say that all is well. What it made stays with --keep-damaged, and is seen to be its work.
        assert (
            restored(("r", json.dumps({"verdicts": {"fresh": ["whole", ""]}, "home": None, "error": "", "notes": []})))
            == 1
        )
        found = json.loads(qubes.features("fresh")["found"])
        assert found.pop("net") == ["lo"]
        assert set(found.values()) == {126}, found
        tags = qubes.tags("fresh")
        assert "friend" in tags and "backup-restore-mgmt" not in tags and "created-by-x" not in tags
        assert any(tag.startswith("restored-from-backup-at-") for tag in tags)
        assert qubes.get("fresh", "autostart").text == "False"
        world.run("qvm-start", "fresh", status=1)
        assert [
            world.run(*words, usable).stdout for words in (("qvm-prefs",), ("qvm-features",), ("qvm-tags",))
        ] == facts
        assert world.inside(usable, "echo there") == "there"
    finally:
        lax.unlink()
        world.run("qvm-remove", "-f", "fresh", status=None)


def test_without_a_template_it_says_how_to_make_one(
    world: World, management: str, passphrase: str, tmp_path: Path
) -> None:
    world.run("qubes-prefs", "management_dispvm", "")
    try:
        (tmp_path / "backup").write_bytes(b"x")
        done = world.run("qvm-backup-restore", "--paranoid-mode", "-p", passphrase, str(tmp_path / "backup"), status=1)
        assert b"qubes-prefs management_dispvm default-mgmt-dvm" in done.stderr
    finally:
        world.run("qubes-prefs", "management_dispvm", management)
