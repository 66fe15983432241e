"""The pages of disposables, templates and backups, and the first steps, as a browser asks for them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from urllib.parse import urlencode

import pytest

from casemate.backup.schedule import Schedule, Schedules
from casemate.web import first_run
from casemate.web.actions import Actions
from casemate.web.admin_api import AdminApi
from casemate.web.disposables_page import age
from casemate.web.first_run import FirstRun
from casemate.web.live import Live
from casemate.web.long_calls import MAX_LONG_CALLS
from casemate.web.site import Site
from casemate.web.templates_page import built
from casemate.wire.events import BackupProgress
from tests.builders import short_directory, wait_for
from tests.fakes.daemon import FakeDaemon, running
from tests.fakes.web import Page, page

FORM = {"content-type": "application/x-www-form-urlencoded"}


@pytest.fixture
def daemon() -> Iterator[FakeDaemon]:
    with short_directory() as directory, running(directory) as found:
        yield found


@pytest.fixture
def filled(daemon: FakeDaemon) -> FakeDaemon:
    qubes = daemon.client()
    for name in ("deb", "deb-new"):
        qubes.create("TemplateVM", name, "black")
    for name in ("work", "mail", "dvm"):
        qubes.create("AppVM", name, "blue", "deb")
    qubes.set("dvm", "template_for_dispvms", "True")
    qubes.set(None, "default_dispvm", "dvm")
    return daemon


@pytest.fixture
def web(daemon: FakeDaemon) -> Iterator[Page]:
    with page(daemon.socket.parents[1]) as found:
        yield found


def post(web: Page, path: str, **fields: str) -> tuple[int, dict[str, str], str]:
    return web.ask("POST", path, urlencode(fields), web.headers() | FORM)


def read(web: Page, path: str) -> str:
    status, _, text = web.ask("GET", path)
    assert status == 200, (path, status, text)
    return text


CHANGES = ("/disposables/dvm/new", "/disposables/dvm/wait", "/disposables/dvm/warm", "/warm/0/drop",
           "/disposables/a/fork", "/disposables/a/keep", "/snapshots/a/resume", "/snapshots/a/drop",
           "/templates/switch", "/templates/build", "/templates/deb/rebuild", "/backups/a/run", "/backups/a/cancel",
           "/first/qube", "/first/network", "/host/probe")  # fmt: skip


def test_a_read_only_page_shows_all_and_changes_nothing(filled: FakeDaemon) -> None:
    before = filled.store.path.read_bytes()
    with page(filled.socket.parents[1], "--read-only") as web:
        for path in CHANGES:
            assert post(web, path)[0] == 403, path
        with web.stream(topics="events+done") as messages:
            next(message for message in messages if not message["lost"])
            for path in ("/part/disposables", "/part/templates", "/view/templates", "/part/backups", "/view/backups",
                         "/part/first", "/part/host"):  # fmt: skip
                assert "data-post" not in read(web, path), path
    assert filled.store.path.read_bytes() == before


def test_every_change_needs_our_header_and_a_token(filled: FakeDaemon, web: Page) -> None:
    for path in CHANGES:
        assert web.ask("POST", path, headers=web.headers(x_casemate=None))[0] == 403, path
        assert web.ask("POST", path, headers=web.headers(authorization=None))[0] == 401, path
        assert web.ask("GET", path)[0] == 405, path


# --------------------------------------------------------------------------------------------------------- disposables


def test_disposables_are_made_counted_and_killed(filled: FakeDaemon, web: Page) -> None:
    assert "None runs" in read(web, "/part/disposables")
    status, _, text = post(web, "/disposables/dvm/new")
    name = text.split(" ")[0]
    assert status == 200 and name.startswith("disp")
    wait_for(lambda: name in filled.parts.machines, 20)
    text = read(web, "/part/disposables")
    assert f"/qubes/{name}/do/kill" in text and "Running" in text
    assert f"/disposables/{name}/fork" in text
    assert post(web, f"/disposables/{name}/fork")[0] == 200
    wait_for(lambda: filled.parts.forks.asked == [(name, 1)], 20)
    assert post(web, f"/disposables/{name}/keep")[0] == 200
    wait_for(lambda: filled.parts.snapshots.kept, 20)
    (kept,) = filled.parts.snapshots.kept
    assert kept.startswith(f"{name}-20")
    assert f"/snapshots/{kept}/resume" in read(web, "/part/disposables")
    assert post(web, f"/snapshots/{kept}/resume")[0] == 200
    assert post(web, f"/snapshots/{kept}/drop")[0] == 200 and not filled.parts.snapshots.kept
    assert post(web, f"/snapshots/{kept}/drop")[0] == 409
    assert post(web, f"/qubes/{name}/do/kill")[0] == 202
    wait_for(lambda: name not in read(web, "/part/disposables"), 20)


def test_how_many_wait_is_set_and_given_back_to_use(filled: FakeDaemon, web: Page) -> None:
    features = filled.client().features
    assert post(web, "/disposables/dvm/wait", wanted="3")[0] == 200
    assert features("dvm")["preload-dispvm-max"] == "3" and 'value="3"' in read(web, "/part/disposables")
    for wrong in ("65", "-1", "x"):
        assert post(web, "/disposables/dvm/wait", wanted=wrong)[0] == 409
    for _ in range(2):
        assert post(web, "/disposables/dvm/wait", wanted="")[0] == 200
    assert "preload-dispvm-max" not in features("dvm")


def test_one_that_waits_is_not_one_in_use(filled: FakeDaemon, web: Page) -> None:
    with filled.store.write() as transaction:
        transaction.system.domains["dvm"].features["preload-dispvm"] = "disp1"
        from uuid import uuid4

        transaction.system.add("DispVM", "disp1", uuid=uuid4(), label="red", template="dvm", dispid=1)
    text = read(web, "/part/disposables")
    assert "None runs" in text and ">disp1<" in text.partition("Made from")[2]


def test_warm_images_are_made_listed_and_dropped(filled: FakeDaemon, web: Page) -> None:
    assert "There is none" in read(web, "/part/disposables")
    assert post(web, "/disposables/dvm/warm")[0] == 200
    wait_for(lambda: "/warm/0000000000000000/drop" in read(web, "/part/disposables"), 20)
    assert post(web, "/warm/0000000000000000/drop")[0] == 200
    assert post(web, "/warm/0000000000000000/drop")[0] == 409 and not filled.parts.warm.images


def test_long_calls_are_bounded(filled: FakeDaemon, web: Page) -> None:
    gate = asyncio.Event()

    async def slow(_name: str) -> None:
        await gate.wait()

    filled.parts.warm.build = slow  # type: ignore[method-assign, assignment]
    statuses = [post(web, "/disposables/dvm/warm")[0] for _ in range(MAX_LONG_CALLS + 2)]
    assert statuses == [200] * MAX_LONG_CALLS + [503, 503]
    filled.loop.call_soon_threadsafe(gate.set)


def test_ages_are_for_persons() -> None:
    assert [age(n) for n in (-1, 0, 119, 120, 7199, 7200, 200000)] == [
        "0 s",
        "0 s",
        "119 s",
        "2 min",
        "119 min",
        "2 h",
        "2 days",
    ]
    assert built("2020-01-01 00:00:00").endswith(" days") and built("x") == built("") == ""


# ----------------------------------------------------------------------------------------------------------- templates


def test_templates_and_who_uses_them(filled: FakeDaemon, web: Page) -> None:
    text = read(web, "/part/templates")
    assert "3 qubes" in text and "dvm, mail, work" in text and "nobody" in text


def test_several_qubes_are_switched_and_a_refusal_holds_no_other_up(filled: FakeDaemon, web: Page) -> None:
    filled.client().call("admin.vm.Start", "", "work")
    with web.stream(topics="events+done") as messages:
        next(message for message in messages if not message["lost"])
        chosen = {"qube-mail": "1", "qube-work": "1", "qube-dvm": "1"}
        assert post(web, "/templates/switch", to="deb-new", **chosen)[0] == 200
        told = next(message for message in messages if message["notices"])["notices"][0]
        assert "2 qubes have the template deb-new" in told and "work: " in told
    found = {name: filled.client().get(name, "template").text for name in ("mail", "work", "dvm")}
    assert found == {"mail": "deb-new", "work": "deb", "dvm": "deb-new"}
    assert post(web, "/templates/switch", to="deb-new")[0] == 409
    many = {f"qube-gone{number}": "1" for number in range(1000)}
    assert post(web, "/templates/switch", to="deb-new", **many)[0] == 200
    assert post(web, "/templates/switch", to="deb-new", **{f"a{number}": "1" for number in range(2100)})[0] == 409
    assert post(web, "/templates/switch", to="a b", **chosen)[0] == 409


def test_a_template_is_built_while_the_page_goes_on(filled: FakeDaemon, web: Page) -> None:
    status, _, text = post(web, "/templates/build", suite="trixie", kind="lean", packages="git, firefox-esr", name="")
    assert status == 200 and text.startswith("debian-13 ")
    wait_for(lambda: "Debian 13, lean with git, firefox-esr" in read(web, "/part/templates"), 20)
    assert post(web, "/templates/debian-13/rebuild")[0] == 200
    for wrong in ({"suite": "lenny"}, {"kind": "x"}, {"packages": "a;b"}, {"name": "a b"}):
        assert post(web, "/templates/build", **wrong)[0] == 409


# ------------------------------------------------------------------------------------------------------------- backups


def test_backups_show_profiles_schedules_and_what_is_wrong(filled: FakeDaemon, web: Page) -> None:
    state = filled.socket.parents[1]
    assert "There is none in" in read(web, "/part/backups")
    (state / "backup").mkdir(exist_ok=True)
    (state / "backup" / "daily.conf").write_text(
        "destination_path: /mnt/<b>usb\npassphrase_text: secret-words\ninclude: [mail]\n"
    )
    (state / "backup" / "typed.conf").write_text("destination_path: /mnt/repo\nrepository: true\n")
    (state / "backup" / "bad.conf").write_text("nonsense: 1\n")
    schedules = Schedules(state)
    schedules.put(Schedule("daily", "daily", 86400, 1, "cron"))
    schedules.began("daily")
    schedules.ended("daily", "no <room>")
    text = read(web, "/part/backups")
    assert "FAILED" in text and "&lt;b&gt;usb" in text and "<b>usb" not in text and "no &lt;room&gt;" in text
    assert "nonsense" in text and "repository" in text and "typed" in text
    assert "secret-words" not in text + read(web, "/view/backups?profile=daily"), "a passphrase is shown to nobody"
    assert "mail" in read(web, "/view/backups?profile=daily") and "Back up now" in read(
        web, "/view/backups?profile=daily"
    )
    assert "Back up now" not in read(web, "/view/backups?profile=typed"), "nobody could type its passphrase"
    assert 'role="alert"' in read(web, "/view/backups?profile=nobody")
    assert web.ask("GET", "/view/backups?profile=../x")[0] == 200


def test_a_backup_shows_how_far_it_is_and_how_it_ended(filled: FakeDaemon, web: Page) -> None:
    state = filled.socket.parents[1]
    (state / "backup").mkdir(exist_ok=True)
    (state / "backup" / "daily.conf").write_text(
        "destination_path: /nowhere/x\npassphrase_text: secret-words\ninclude: [mail]\n"
    )
    with web.stream(topics="events+done") as messages:
        next(message for message in messages if not message["lost"])
        progress = BackupProgress(backup_profile="other", progress="41.5")
        filled.loop.call_soon_threadsafe(filled.parts.bus.say, progress)
        wait_for(lambda: "41.5 %" in read(web, "/part/backups"), 20)
        status, headers, _ = post(web, "/backups/daily/run")
        assert status == 200 and headers["x-next"] == "#/backups"
        wait_for(lambda: "from this page: failed" in read(web, "/part/backups"), 30)
        next(message for message in messages if any("Backup by daily" in text for text in message["notices"]))
    assert post(web, "/backups/daily/cancel")[0] == 409, "it does not run"


# ---------------------------------------------------------------------------------------------------------- first steps


def test_the_first_steps_lead_to_a_running_qube(daemon: FakeDaemon, web: Page) -> None:
    with web.stream(topics="events+done") as messages:
        next(message for message in messages if not message["lost"])
        assert "Build Debian 13" in read(web, "/part/first")
        assert post(web, "/templates/build", suite="trixie")[0] == 200
        wait_for(lambda: "Make sys-net" in read(web, "/part/first"), 20)
        assert post(web, "/first/network")[0] == 200
        wait_for(lambda: "Make sys-net" not in read(web, "/part/first"), 20)
        assert daemon.client().get(None, "default_netvm").text == "sys-net"
        assert post(web, "/first/qube", name="personal", label="blue")[0] == 200
        wait_for(lambda: "Start personal now" in read(web, "/part/first"), 20)
        assert post(web, "/qubes/personal/do/start")[0] == 202
        wait_for(lambda: read(web, "/part/first").strip() == "", 20)
        assert post(web, "/first/qube", name="a b", label="blue")[0] == 409
        assert post(web, "/first/qube", name="x", label="pink")[0] in (404, 409)


def test_a_step_is_told_when_the_rows_have_it(filled: FakeDaemon) -> None:
    """Who asks as soon as he is told must not be answered from rows of before."""
    qubes = filled.client()

    async def follow() -> None:
        api = AdminApi(qubes.transport)
        live = Live(api)
        FirstRun(Site(api, live, Actions(api, live), False))
        told: list[bool] = []
        tell = live.tell

        def noted(topic: str) -> None:
            if topic == first_run.TOPIC:
                told.append(first_run.steps(live.rows.values()).network)
            tell(topic)

        live.tell = noted  # type: ignore[method-assign]
        try:
            with live.used():
                async with asyncio.timeout(20):
                    while live.lost or not told:
                        await asyncio.sleep(0.05)
                    assert told[-1] is False
                    await asyncio.to_thread(qubes.set, "work", "provides_network", "True")
                    while not told[-1]:
                        await asyncio.sleep(0.05)
        finally:
            await live.close()

    asyncio.run(follow())


def test_a_system_in_use_has_no_first_steps(filled: FakeDaemon, web: Page) -> None:
    with web.stream(topics="events+done") as messages:
        next(message for message in messages if not message["lost"])
        assert read(web, "/part/first").strip() == ""


def test_a_net_qube_that_cannot_be_is_not_half_made(filled: FakeDaemon, web: Page) -> None:
    filled.parts.network.why = "no namespaces"
    status, _, text = post(web, "/first/network")
    assert status == 409 and "no namespaces" in text and "sys-net" not in filled.client().call("admin.vm.List")
