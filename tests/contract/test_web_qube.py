"""One qube on the manager page: each form as a browser sends it, each wrong input named in the answer."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType
from urllib.parse import urlencode

import pytest

from casemate.model.classes import CLASSES
from casemate.model.kinds import Choice
from casemate.model.properties import Property
from casemate.web import live
from casemate.web.admin_api import AdminApi
from casemate.wire.errors import StorageError
from tests.builders import short_directory, wait_for
from tests.fakes.answered_call import answered_call
from tests.fakes.daemon import FakeDaemon, running
from tests.fakes.host_devices import add_block
from tests.fakes.web import Page, page, post


@pytest.fixture(scope="module")
def daemon() -> Iterator[FakeDaemon]:
    with short_directory() as directory, running(directory) as found:
        qubes = found.client()
        qubes.create("TemplateVM", "deb", "black")
        qubes.set(None, "default_template", "deb")
        for name, label in (("work", "blue"), ("vault", "gray")):
            qubes.create("AppVM", name, label, "deb")
        found.parts.volumes.kept["work", "private"] = ["2026-11-01T10:00:00"]
        add_block(found.parts.sys, "sdb", size=4096)
        yield found


@pytest.fixture(scope="module")
def web(daemon: FakeDaemon) -> Iterator[Page]:
    with page(daemon.socket.parents[1]) as found:
        yield found


TABS = ("", "/features", "/volumes", "/devices", "/firewall", "/programs", "/log", "/console")


# ---------------------------------------------------------------------------------------------------------- the forms


def test_every_tab_of_every_kind_of_qube_is_shown(daemon: FakeDaemon, web: Page) -> None:
    for name in ("work", "deb", "dom0"):
        for tab in TABS:
            status, _, text = web.ask("GET", f"/view/qubes/{name}{tab}")
            assert status == 200 and f"<h1>{name}</h1>" in text, (name, tab, text)
    assert web.ask("GET", "/view/qubes/nobody")[0] == 404
    assert web.ask("GET", "/view/qubes/a%20b/volumes")[0] == 409


def test_a_new_property_has_a_form_at_once(daemon: FakeDaemon, web: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page knows no property by name: one that is declared is shown, with what it takes and its default."""
    fresh = Property(Choice("slow", "fast"), default="slow", doc="How fast it is.")
    fresh.name = "brand_new"
    kind = CLASSES["AppVM"]
    monkeypatch.setattr(kind, "_table", MappingProxyType({**kind.properties(), "brand_new": fresh}))
    text = web.ask("GET", "/view/qubes/work")[2]
    form = text[text.index('data-key="property-brand_new"') :].partition("</form>")[0]
    assert '<option value="slow" selected>' in form and '<option value="fast">' in form
    assert "How fast it is." in form and ">default<" in form


def test_what_describe_says_is_what_single_questions_say(daemon: FakeDaemon) -> None:
    qubes = daemon.client()
    qubes.set("deb", "memory", "700")
    described = {one["name"]: one for one in json.loads(qubes.call("admin.casemate.property.Describe", "", "work"))}
    assert list(described) == qubes.property_names("work")
    for name, value in qubes.properties("work").items():
        one = described[name]
        assert (one["type"], one["value"], one["is_default"]) == (value.tag, value.text, value.default), name
        assert one["doc"] in qubes.help("work", name)
    assert described["memory"]["origin"] == "the template deb" and described["memory"]["default"] == "700"
    assert described["kernel"]["origin"] == "the template deb"
    assert described["netvm"]["origin"] == "the global default_netvm" and described["label"]["default"] is None
    assert described["memory"]["bounds"] == {"low": 1, "high": 1 << 24, "unit": "MiB"}
    qubes.reset("deb", "memory")


def test_who_uses_a_qube_is_told(daemon: FakeDaemon) -> None:
    qubes = daemon.client()
    found = json.loads(qubes.call("admin.casemate.Uses", "", "deb"))
    assert {"qube": "work", "property": "template", "is_default": False} in found
    assert {"qube": "", "property": "default_template", "is_default": False} in found
    assert json.loads(qubes.call("admin.casemate.Uses", "", "vault")) == []


WRONG = [
    ("/qubes/work/property/memory", {"value": "lots"}, 409, "number"),
    ("/qubes/work/property/memory", {"value": "0"}, 409, "0 MiB"),
    ("/qubes/work/property/memory", {"other": "1"}, 409, "value"),
    ("/qubes/work/property/netvm", {"value": "nobody"}, 404, "nobody"),
    ("/qubes/work/property/netvm", {"value": "vault"}, 409, "network"),
    ("/qubes/work/property/label", {"value": "plaid"}, 409, "plaid"),
    ("/qubes/work/property/autostart", {"value": "perhaps"}, 409, "perhaps"),
    ("/qubes/work/property/uuid", {"value": "1"}, 409, "uuid"),
    ("/qubes/work/property/no_such", {"value": "1"}, 409, "no_such"),
    ("/qubes/work/property/label/reset", {}, 409, "label"),
    ("/qubes/nobody/property/memory", {"value": "400"}, 404, "nobody"),
    ("/qubes/work/feature", {"feature": "a b", "value": ""}, 409, "a b"),
    ("/qubes/work/feature", {"feature": "", "value": ""}, 409, "feature"),
    ("/qubes/work/feature", {"feature": "x"}, 409, "feature, value"),
    ("/qubes/work/feature/remove", {"feature": "never"}, 409, "never"),
    ("/qubes/work/service", {"service": "cups", "state": "maybe"}, 409, "on or off"),
    ("/qubes/work/tag", {"tag": "b\u00e4d"}, 409, ""),
    ("/qubes/work/tag/remove", {"tag": "never"}, 409, "never"),
    ("/qubes/work/notes", {"notes": "x", "known": "something else"}, 409, "changed meanwhile"),
    ("/qubes/work/volume/private/resize", {"size": "1", "unit": "MiB"}, 409, "smaller"),
    ("/qubes/work/volume/private/resize", {"size": "-5", "unit": "GiB"}, 409, "size"),
    ("/qubes/work/volume/private/resize", {"size": "5", "unit": "PiB"}, 409, "MiB, GiB"),
    ("/qubes/work/volume/private/resize", {"size": "9" * 30, "unit": "GiB"}, 409, "size"),
    ("/qubes/work/volume/nothing/resize", {"size": "5", "unit": "GiB"}, 409, "nothing"),
    ("/qubes/work/volume/private/revert", {"revision": "yesterday"}, 409, "yesterday"),
    ("/qubes/work/volume/private/keep", {"revisions": "all"}, 409, "revisions_to_keep"),
    ("/qubes/work/device/block/explode", {"device": "dom0+sdb+sdb"}, 404, "action"),
    ("/qubes/work/device/block/attach", {"device": "sdb"}, 409, "BACKEND+PORT+IDENTITY"),
    ("/qubes/work/device/block/attach", {"device": "dom0+sdb+_"}, 409, "work"),
    ("/qubes/work/device/block/assign", {"device": "dom0+sdb+_", "mode": "often"}, 409, "required"),
    ("/qubes/work/device/block/unassign", {"device": "dom0+sdb+_"}, 409, "not assigned"),
    ("/qubes/work/device/nothing/attach", {"device": "dom0+sdb+_"}, 409, ""),
    ("/qubes/work/firewall", {"known": "action=accept\n", "rules": "action=maybe"}, 409, "maybe"),
    ("/qubes/work/firewall", {"known": "action=accept\n", "rules": "action=drop dst4=300.1.1.1"}, 409, "300.1.1.1"),
    ("/qubes/work/firewall", {"known": "action=drop\n", "rules": "action=drop\n"}, 409, "changed meanwhile"),
    ("/qubes/work/firewall/remove", {"rule": "0 action=drop"}, 409, "changed meanwhile"),
    ("/qubes/work/firewall/remove", {"rule": "x action=drop"}, 409, "number of a rule"),
    ("/qubes/work/firewall/remove", {"rule": "99 action=accept"}, 409, "changed meanwhile"),
    ("/qubes/work/program", {"program": "firefox"}, 404, "menus"),
    ("/qubes/work/console", {"rows": "24", "columns": "80"}, 409, "not running"),
    ("/qubes/work/console", {"rows": "1", "columns": "80"}, 409, "rows"),
    ("/qubes", {"name": "work", "class": "AppVM", "template": "=default", "label": "red", "netvm": ""}, 409, "exists"),
    ("/qubes", {"name": "2nd", "class": "AppVM", "template": "=default", "label": "red", "netvm": ""}, 409, "2nd"),
    ("/qubes", {"name": "n", "class": "Cloud", "template": "=default", "label": "red", "netvm": ""}, 409, ""),
    ("/qubes", {"name": "n", "class": "AppVM", "template": "vault", "label": "red", "netvm": ""}, 409, "vault"),
    ("/qubes", {"name": "n", "class": "AppVM", "template": "=default", "label": "plaid", "netvm": ""}, 409, "plaid"),
    ("/qubes", {"name": "n", "class": "AppVM", "template": "deb", "label": "red", "netvm": "vault"}, 409, "network"),
    ("/qubes/work/clone", {"name": "vault"}, 409, "exists"),
    ("/qubes/work/clone", {"name": "dom0"}, 409, "dom0"),
    ("/qubes/dom0/clone", {"name": "host-2"}, 409, "this host"),
    ("/qubes/work/rename", {"name": "a/b"}, 409, "a/b"),
    ("/qubes/deb/remove", {"state": "Halted"}, 409, "work.template"),
    ("/qubes/work/remove", {"state": "Running"}, 409, "halted now"),
    ("/qubes/dom0/remove", {"state": "Running"}, 409, "this host"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "fields", "status", "named"), WRONG)
def test_wrong_input_is_named_and_changes_nothing(
    daemon: FakeDaemon, web: Page, path: str, fields: dict[str, str], status: int, named: str
) -> None:
    before = daemon.store.snapshot()
    found, text = post(web, path, **fields)
    assert found == status and text and named in text, (found, text)
    after = daemon.store.snapshot()
    assert [one.name for one in after.domains.ordered()] == [one.name for one in before.domains.ordered()]
    for domain in before.domains.ordered():
        assert after.domains[domain.name].state.values == domain.state.values
        assert after.domains[domain.name].state.features == domain.state.features
    assert daemon.client().call("admin.vm.firewall.Get", "", "work") == "action=accept\n"


RULE = {"where": "first", "action": "drop", "proto": "tcp", "dsthost": "", "dstports": "", "minutes": "", "comment": ""}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"action": "maybe"}, "maybe"), ({"dsthost": "a host"}, "a host"), ({"dsthost": "1.2.3.4/99"}, "1.2.3.4/99"),
        ({"dstports": "http"}, "port"), ({"dstports": "1-99999"}, "port"), ({"proto": "", "dstports": "1"}, "proto"),
        ({"minutes": "soon"}, "minutes"), ({"minutes": "9" * 12}, "minutes"), ({"comment": "\u2603"}, "comment"),
        ({"comment": "a\naction=accept"}, "comment"), ({"where": "middle"}, "first or last"),
    ],
)  # fmt: skip
def test_a_wrong_rule_is_named(daemon: FakeDaemon, web: Page, changes: dict[str, str], named: str) -> None:
    status, text = post(web, "/qubes/work/firewall/add", **{**RULE, **changes})
    assert status == 409 and named in text, text
    assert daemon.client().call("admin.vm.firewall.Get", "", "work") == "action=accept\n"


def test_a_creation_whose_network_is_refused_leaves_nothing(daemon: FakeDaemon, web: Page) -> None:
    fields = {"name": "half", "class": "AppVM", "template": "=default", "label": "red"}
    assert post(web, "/qubes", **fields, netvm="vault")[0] == 409
    assert "half" not in daemon.store.snapshot().domains
    status, headers, _ = web.ask("POST", "/qubes", urlencode({**fields, "netvm": ""}))
    assert status == 200 and headers["x-next"] == "#/qubes/half"
    assert daemon.client().get("half", "netvm").text == ""
    daemon.client().remove("half")


def test_a_rename_that_fails_is_undone(daemon: FakeDaemon, web: Page) -> None:
    """The last step is refused: whoever used the qube uses it again, and the copy is gone."""
    qubes = daemon.client()
    qubes.create("AppVM", "net", "red", "deb")
    qubes.set("net", "provides_network", "True")
    qubes.set("net", "ip", "10.137.0.99")
    qubes.set("vault", "netvm", "net")
    real = daemon.parts.qubes.remove

    async def refuse(name: str) -> None:
        if name == "net":
            raise StorageError("the pool is not there")
        await real(name)

    daemon.parts.qubes.remove = refuse  # type: ignore[method-assign]
    try:
        with web.stream() as messages:
            next(message for message in messages if "net" in message["rows"])
            assert post(web, "/qubes/net/rename", name="other")[0] == 202
            told = next(message for message in messages if message["notices"])
            assert told["notices"] == ["Rename net: the pool is not there"]
    finally:
        daemon.parts.qubes.remove = real  # type: ignore[method-assign]
    assert qubes.get("vault", "netvm").text == "net" and "other" not in daemon.store.snapshot().domains
    assert qubes.get("net", "ip").text == "10.137.0.99"
    assert post(web, "/qubes/net/rename", name="other")[0] == 202
    wait_for(lambda: "net" not in daemon.store.snapshot().domains, 20)
    assert qubes.get("vault", "netvm").text == "other" and qubes.get("other", "ip").text == "10.137.0.99"
    qubes.set("vault", "netvm", "")
    qubes.remove("other")


def test_removing_a_running_qube_ends_it_first(daemon: FakeDaemon, web: Page) -> None:
    daemon.client().create("AppVM", "brief", "red", "deb")
    daemon.client().call("admin.vm.Start", "", "brief")
    assert "ended first" in web.ask("GET", "/view/qubes/brief/dialog/remove")[2]
    assert post(web, "/qubes/brief/remove", state="Running")[0] == 202
    wait_for(lambda: "brief" not in daemon.store.snapshot().domains, 20)
    assert "brief" not in daemon.parts.machines


def test_a_read_only_page_shows_all_and_changes_nothing(daemon: FakeDaemon) -> None:
    with page(daemon.socket.parents[1], "--read-only") as web:
        for tab in TABS:
            status, _, text = web.ask("GET", f"/view/qubes/work{tab}")
            assert status == 200 and "data-post" not in text and "<textarea" not in text, tab
        for path, fields, _, _ in WRONG:
            assert post(web, path, **fields)[0] == 403, path


# --------------------------------------------------------------------------------------------------- what is followed


def test_pages_are_told_of_the_topics_that_they_follow(daemon: FakeDaemon, web: Page) -> None:
    with web.stream(topics="qube:work+event:domain-add") as messages:
        next(message for message in messages if not message["lost"])
        daemon.client().call("admin.vm.feature.Set", "gui", "vault", "1")
        daemon.client().call("admin.vm.feature.Set", "gui", "work", "1")
        assert next(messages)["topics"] == ["qube:work"]
        daemon.client().create("AppVM", "mail", "green", "deb")
        assert "event:domain-add" in next(message for message in messages if message["topics"])["topics"]
    daemon.client().remove("mail")


def test_topics_that_are_forgotten_mean_everything(daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "KEPT_TOPICS", 3)
    found = live.Live(AdminApi(daemon.client().transport))
    found.tell("qube:old")
    version = found.since(0).version
    for number in range(3):
        found.tell(f"qube:{number}")
    assert not found.since(version).whole and len(found.since(version).topics) == 3
    for number in range(3, 6):
        found.tell(f"qube:{number}")
    assert found.since(version).whole, "some of those that changed are forgotten"
    assert not found.since(found.since(0).version).whole


# --------------------------------------------------------------------------------------------- what others have chosen

EVIL = "<img src=x onerror=alert(1)>\"'"


def test_text_of_others_is_escaped_on_every_tab(daemon: FakeDaemon, web: Page) -> None:
    plant(daemon, "work")
    for tab in TABS:
        text = web.ask("GET", f"/view/qubes/work{tab}?host=a.example")[2]
        assert "<img" not in text, tab
        if tab in ("/features", "/programs", "/log", "/firewall", "/devices", ""):
            assert "&lt;img" in text, f"{tab}: it is shown"
    for tab in ("/features", "/programs", "/devices"):
        assert "said" in web.ask("GET", f"/view/qubes/work{tab}")[2], f"{tab}: what a qube says is marked"
    status, _, text = web.ask("GET", f"/view/qubes/work/firewall?{urlencode({'host': EVIL})}")
    assert status == 200 and "<img" not in text


def plant(daemon: FakeDaemon, name: str) -> None:
    """Put a hostile text wherever somebody else than the person at the page may choose one."""
    qubes = daemon.client()
    domain = daemon.store.snapshot().domains[name]
    qubes.set(name, "kernelopts", EVIL)
    qubes.call("admin.vm.feature.Set", "os-version", name, EVIL)
    qubes.call("admin.vm.notes.Set", "", name, EVIL + "</textarea>")
    qubes.call("admin.vm.firewall.Set", "", name, f"action=accept comment={EVIL}\n")
    daemon.context.files.set_menus(daemon.store.snapshot().domains["deb"].uuid, f"evil\t{EVIL}\t{EVIL}\t\t\n")
    if not (daemon.parts.sys / "block" / "sdc").exists():
        add_block(daemon.parts.sys, "sdc", size=4096, device__model=EVIL[:40], device__vendor="<b>")
    log = daemon.client().transport.settings.qube_log("link", name)
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(f"2026-11-27 {name}: refused: {EVIL}\n\x1b]0;x\x07\u202e\n")
    assert domain.name == name


@pytest.mark.parametrize("code", [0, 3])
def test_a_program_of_the_menus_is_started(daemon: FakeDaemon, web: Page, code: int) -> None:
    """The link is this test: it gets the call as qvm-run's would be, and answers what the service ended with."""
    domain = daemon.store.snapshot().domains["deb"]
    daemon.context.files.set_menus(domain.uuid, "org.gnome.Nautilus\tFiles\t\t\t\n")
    assert post(web, "/qubes/vault/program", program="rm")[0] == 404, "only what is in the menus"
    assert post(web, "/qubes/vault/program", program="org.gnome.Nautilus")[0] == 409, "it does not run"
    path = Path(daemon.client().transport.settings.link_address("vault"))
    with answered_call(path, b"x" * 1000, code) as heard:
        status, text = post(web, "/qubes/vault/program", program="org.gnome.Nautilus")
    assert b"DEFAULT:QUBESRPC qubes.StartApp+org.gnome.Nautilus dom0" in heard
    assert (status, str(code) in text) == ((200, False) if code == 0 else (409, True)), text


def test_what_a_log_says_is_printable_and_its_end(daemon: FakeDaemon, web: Page) -> None:
    path = daemon.client().transport.settings.qube_log("link", "vault")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"first\n" + b"x" * 100_000 + b"\nlast \x1b[2J\xff\n")
    text = web.ask("GET", "/view/qubes/vault/log")[2]
    assert "first" not in text and "last \\x1b[2J" in text and "\x1b" not in text
    path.unlink()
    path.symlink_to("/etc/passwd")
    assert "root:" not in web.ask("GET", "/view/qubes/vault/log")[2]
    path.unlink()
    os.mkfifo(path)
    assert web.ask("GET", "/view/qubes/vault/log")[0] == 200, "nothing waits for a pipe"
    path.unlink()


def test_a_slow_answer_about_one_thing_hides_no_other(daemon: FakeDaemon, web: Page) -> None:
    """A volume that the daemon cannot tell about is shown with the reason; the others are there."""
    real = daemon.parts.volumes.usage

    async def broken(name: str, volume: str) -> int:
        if volume == "root":
            raise StorageError("pool <b>gone</b> is not mounted")
        return await real(name, volume)

    daemon.parts.volumes.usage = broken  # type: ignore[method-assign]
    try:
        text = web.ask("GET", "/view/qubes/work/volumes")[2]
    finally:
        daemon.parts.volumes.usage = real  # type: ignore[method-assign]
    assert "pool &lt;b&gt;gone" in text and "Resize private" in text
