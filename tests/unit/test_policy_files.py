"""The policy's files: two directories, old files, what may be included, and that no change is missed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from casemate.qrexec import files as module
from casemate.qrexec.files import PolicyFiles
from casemate.qrexec.parser import MAX_DEPTH, Parser
from casemate.qrexec.watch import DirectoryWatch
from casemate.wire.errors import PolicyError


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def places(files: PolicyFiles) -> list[str]:
    return [rule.location for rule in files.current().rules]


def services(files: PolicyFiles) -> list[str | None]:
    return [rule.service for rule in files.current().rules]


def test_a_file_of_the_run_directory_hides_its_like(tmp_path: Path) -> None:
    state, run = tmp_path / "state" / "policy.d", tmp_path / "run" / "policy.d"
    write(state / "10-a.policy", "a * * * deny")
    write(state / "20-b.policy", "b * * * deny")
    files = PolicyFiles(state, run)
    with pytest.raises(PolicyError, match="run/policy.d: No such file"):
        files.current()  # half a policy is none
    write(run / "20-b.policy", "c * * * deny\n!include shared")
    write(state / "shared", "d * * * deny")
    write(run / "15-new.policy", "e * * * deny")
    assert services(files) == ["a", "e", "c", "d"]
    (run / "20-b.policy").unlink()
    assert services(files) == ["a", "e", "b"]
    write(run / "10-a.policy", "broken")
    with pytest.raises(PolicyError, match=r"run/policy\.d/10-a\.policy:1: "):
        files.current()
    shutil.rmtree(run)
    with pytest.raises(PolicyError, match="No such file"):
        files.current()
    run.mkdir()
    assert services(files) == ["a", "b"]


def test_the_files_of_qubes_4_0(tmp_path: Path) -> None:
    old = tmp_path / "qubes-rpc" / "policy"
    write(tmp_path / "policy.d" / "35-compat.policy", "first * * * deny\n!compat-4.0\nlast * * * deny")
    files = PolicyFiles(tmp_path / "policy.d")
    with pytest.raises(PolicyError, match=r"^35-compat\.policy:2: .*qubes-rpc/policy: No such file"):
        files.current()
    write(old / "my.Service", "work vault allow\n$anyvm\t$anyvm ask,default_target=vault\n")
    write(old / "my.Service+b", "work vault allow,user=root\n")
    write(old / "my.Service+a", "$tag:x $dispvm:dvm allow\n")
    write(old / "a.Other", f"$include:{old}/include/more\n")
    write(old / "include" / "more", "$type:AppVM $adminvm ask\n")
    for name in (".hidden", "x.rpmsave", "x.rpmnew", "x.swp", "x~", "sp ace", "x$y"):
        write(old / name, "broken")
    rules = files.current().rules
    assert [str(rule) for rule in rules] == [
        "first * * * deny",
        "a.Other * @type:AppVM @adminvm ask",
        "my.Service +a @tag:x @dispvm:dvm allow",
        "my.Service +a @anyvm @anyvm deny",
        "my.Service +a @anyvm @adminvm deny",
        "my.Service +b work vault allow user=root",
        "my.Service +b @anyvm @anyvm deny",
        "my.Service +b @anyvm @adminvm deny",
        "my.Service * work vault allow",
        "my.Service * @anyvm @anyvm ask default_target=vault",
        "last * * * deny",
    ]
    assert rules[3].location == "35-compat.policy:2" and rules[2].location == f"{old}/my.Service+a:1"
    write(old / "my.Service+a", "work vault maybe")
    with pytest.raises(PolicyError, match=r"my\.Service\+a:1: 'maybe' is not"):
        files.current()
    (old / "my.Service+a").unlink()
    assert len(files.current().rules) == 8


@pytest.mark.parametrize("path", ["../x", "a/../../x", "..", "x\x07", "/etc/../x", "y" * 2000])
def test_what_may_not_be_included(tmp_path: Path, path: str) -> None:
    write(tmp_path / "p" / "10.policy", f"!include {path}")
    write(tmp_path / "x", "a * * * deny")
    with pytest.raises(PolicyError, match=r"^10\.policy:1: "):
        PolicyFiles(tmp_path / "p").current()


def test_loops_and_depth(tmp_path: Path) -> None:
    write(tmp_path / "10.policy", "\n!include 10.policy")
    files = PolicyFiles(tmp_path)
    with pytest.raises(PolicyError, match=r"^10\.policy:2: 10\.policy would be included from itself$"):
        files.current()
    for number in range(MAX_DEPTH + 1):
        write(tmp_path / f"f{number}", f"!include f{number + 1}" if number < MAX_DEPTH else "a * * * deny")
    write(tmp_path / "10.policy", "!include f2\n")
    assert len(files.current().rules) == 1
    write(tmp_path / "10.policy", "!include f0\n")
    with pytest.raises(PolicyError, match=rf"^f{MAX_DEPTH - 2}:1: f{MAX_DEPTH - 1} would be more than"):
        files.current()


def test_files_that_multiply_are_stopped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("casemate.qrexec.parser.MAX_RULES", 1000)
    write(tmp_path / "10.policy", "!include a\n" * 10)
    for this, following in (("a", "b"), ("b", "c"), ("c", "d")):
        write(tmp_path / this, f"!include {following}\n" * 10)
    write(tmp_path / "d", "a * * * deny\n")
    with pytest.raises(PolicyError, match="more than 1000 rules"):
        PolicyFiles(tmp_path).current()


def test_what_everybody_may_write_is_no_policy(tmp_path: Path) -> None:
    write(tmp_path / "10.policy", "a * * * deny")
    files = PolicyFiles(tmp_path)
    assert services(files) == ["a"]
    (tmp_path / "10.policy").chmod(0o666)
    with pytest.raises(PolicyError, match=r"10\.policy: everybody may write it"):
        files.current()
    (tmp_path / "10.policy").chmod(0o600)
    tmp_path.chmod(0o777)
    with pytest.raises(PolicyError, match="everybody may write there"):
        files.current()
    tmp_path.chmod(0o700)
    assert services(files) == ["a"]


def test_nothing_is_read_again_without_a_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "10.policy", "a * * * deny")
    files = PolicyFiles(tmp_path)
    first = files.current()
    monkeypatch.setattr(os, "open", None)
    monkeypatch.setattr(os, "stat", None)
    monkeypatch.setattr(os, "listdir", None)
    for _ in range(3):
        assert files.current() is first


def test_every_kind_of_change_is_seen(tmp_path: Path) -> None:
    top, far = tmp_path / "p", tmp_path / "far"
    write(far / "file", "far * * * deny")
    write(far / "include", "inc * * * deny")
    write(top / "10.policy", f"!include {far}/include")
    (top / "20.policy").symlink_to(far / "file")
    files = PolicyFiles(top)
    assert services(files) == ["inc", "far"]
    with open(far / "file", "a") as file:  # written in place, still open
        file.write("\nb * * * deny")
        file.flush()
        assert services(files) == ["inc", "far", "b"]
    (far / "new").write_text("c * * * deny")
    (far / "new").rename(far / "file")
    assert services(files) == ["inc", "c"]
    (far / "include").unlink()
    with pytest.raises(PolicyError):
        files.current()
    write(far / "include", "d * * * deny")
    assert services(files) == ["d", "c"]
    (top / "20.policy").unlink()
    assert services(files) == ["d"]
    top.rename(tmp_path / "q")
    with pytest.raises(PolicyError):
        files.current()
    write(top / "10.policy", "e * * * deny")
    assert services(files) == ["e"]
    shutil.rmtree(top)
    with pytest.raises(PolicyError):
        files.current()
    write(top / "sub" / "x", "")
    write(top / "10.policy", "!include-dir sub/deep/er")
    with pytest.raises(PolicyError):
        files.current()
    write(top / "sub" / "deep" / "er" / "1.policy", "f * * * deny")
    assert services(files) == ["f"]


def test_a_change_while_the_files_are_read_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "10.policy", "a * * * deny")
    write(tmp_path / "20.policy", "b * * * deny")
    files = PolicyFiles(tmp_path)
    parse, again = Parser.parse, True

    def change(self: Parser, name: str, text: str) -> None:
        nonlocal again
        parse(self, name, text)
        if name == "10.policy" and again:  # it has been read and parsed: too late for this time
            again = False
            write(tmp_path / "10.policy", "c * * * deny")

    monkeypatch.setattr(Parser, "parse", change)
    assert services(files) == ["a", "b"]
    assert services(files) == ["c", "b"]


def test_without_watches_everything_is_read_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DirectoryWatch, "add", lambda self, directory: False)
    write(tmp_path / "10.policy", "a * * * deny")
    files = PolicyFiles(tmp_path)
    assert services(files) == ["a"]
    write(tmp_path / "10.policy", "b * * * deny")
    assert services(files) == ["b"]


def test_supposing_other_contents(tmp_path: Path) -> None:
    write(tmp_path / "10.policy", "a * * * deny")
    files = PolicyFiles(tmp_path)
    found = files.load({tmp_path / "05.policy": b"b * * * deny\n!include x", tmp_path / "x": b"c * * * deny"})
    assert [rule.service for rule in found.rules] == ["b", "c", "a"]
    assert files.load({tmp_path / "10.policy": None}).rules == ()
    with pytest.raises(PolicyError, match=r"^10\.policy:1: "):
        files.load({tmp_path / "10.policy": b"broken"})
    assert services(files) == ["a"]


def test_sizes_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_SIZE", 20)
    write(tmp_path / "10.policy", "a * * * deny")
    assert len(places(PolicyFiles(tmp_path))) == 1
    write(tmp_path / "10.policy", "a * * * deny\n# a longer comment")
    with pytest.raises(PolicyError, match="larger than 20 bytes"):
        PolicyFiles(tmp_path).current()
