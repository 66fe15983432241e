"""The manager page on the real daemon: a refused call of a real qube becomes a rule that lets it through; each page is
answered with what this host has."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlencode

import pytest

from tests.builders import wait_for
from tests.fakes.web import Page, page
from tests.live.world import World

pytestmark = pytest.mark.live


@pytest.fixture
def web(world: World) -> Iterator[Page]:
    with page(world.settings.state) as found:
        yield found


def read(web: Page, path: str) -> str:
    status, _, text = web.ask("GET", path)
    assert status == 200, (path, status, text)
    return text


@pytest.fixture
def halted(world: World) -> Iterator[str]:
    """A qube that does not run."""
    world.run("qvm-create", "--label", "green", "shown")
    yield "shown"
    world.run("qvm-remove", "-f", "shown")


def test_each_page_is_answered(halted: str, web: Page) -> None:
    with web.stream() as messages:
        next(message for message in messages if not message["lost"] and halted in message["rows"])
        host = read(web, "/part/host")
        assert "QEMU" in host and "default" in host
        assert halted in read(web, "/view/network") and "<svg" in read(web, "/part/network")
        assert halted in read(web, "/part/templates") and "Debian" in read(web, "/part/templates")
        for path in ("/part/disposables", "/part/backups", "/view/policy", "/view/policy/file?name=90-default",
                     "/part/first", "/view/templates", "/view/backups", "/view/devices"):  # fmt: skip
            read(web, path)
        assert halted in read(web, f"/view/network?qube={halted}&host=192.0.2.1&port=443")


def test_a_refused_call_becomes_a_rule(world: World, usable: str, web: Page) -> None:
    path = world.settings.policy_dir / "30-user.policy"
    try:
        with web.stream(topics="calls") as messages:
            next(message for message in messages if not message["lost"])
            wait_for(lambda: "No qube has called" in read(web, "/part/calls"))
            world.run("qvm-run", "--pass-io", usable, "qrexec-client-vm dom0 test.Web </dev/null", status=None)
            wait_for(lambda: "Make a rule" in read(web, "/part/calls"))
            assert "test.Web" in read(web, "/part/calls")
        asked = {"source": usable, "service": "test.Web", "target": "dom0"}
        assert "Denied" in read(web, f"/view/policy?{urlencode(asked)}")
        fields = {**asked, "name": "30-user", "before": "0", "line": f"test.Web * {usable} @adminvm allow"}
        headers = web.headers() | {"content-type": "application/x-www-form-urlencoded"}
        assert web.ask("POST", "/policy/rule", urlencode(fields), headers)[0] == 200
        assert "Allowed" in read(web, f"/view/policy?{urlencode(asked)}")
    finally:
        path.unlink(missing_ok=True)
