"""The page of the policy, as a browser asks for it: the daemon's own check, its own explanation, its own trace."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from urllib.parse import urlencode

import pytest

from casemate.qrexec.calls import Calls
from casemate.qrexec.files import default_policy
from casemate.web.call_trace import KEPT_CALLS
from casemate.web.policy_page import editable
from casemate.wire.errors import CasemateError
from tests.builders import settings_in, short_directory, wait_for
from tests.fakes.daemon import FakeDaemon, running
from tests.fakes.web import Page, page

FORM = {"content-type": "application/x-www-form-urlencoded"}
RULE = "qubes.Filecopy * work vault allow"


@pytest.fixture
def daemon() -> Iterator[FakeDaemon]:
    with short_directory() as directory, running(directory) as found:
        (directory / "policy.d" / "90-default.policy").write_text(default_policy())
        qubes = found.client()
        qubes.create("TemplateVM", "deb", "black")
        for name in ("work", "vault"):
            qubes.create("AppVM", name, "blue", "deb")
        yield found


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


def explained(daemon: FakeDaemon, payload: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(daemon.client().call("admin.casemate.policy.Explain", "", "dom0", payload))
    return found


# ------------------------------------------------------------------------------------------------------------- the API


def test_a_check_says_what_replace_would_and_changes_nothing(daemon: FakeDaemon) -> None:
    call = daemon.client().call
    for kind, name in (("policy", "30-user"), ("policy.include", "mine")):
        assert call(f"admin.casemate.{kind}.Check", name, "dom0", RULE + "\n") == ""
        assert name not in call(f"{kind}.List")
    call("policy.include.Replace", "mine", "dom0", f"new\n{RULE}\n")
    call("policy.Replace", "30-user", "dom0", "new\n!include include/mine\n")
    for kind, name in (("policy", "30-user"), ("policy.include", "mine")):
        wrong = call(f"admin.casemate.{kind}.Check", name, "dom0", f"{RULE}\nqubes.Filecopy * work\n")
        assert ":2:" in wrong and "\n" not in wrong
        with pytest.raises(CasemateError, match=":2:"):
            call(f"{kind}.Replace", name, "dom0", f"any\n{RULE}\nqubes.Filecopy * work\n")
    with pytest.raises(CasemateError, match="name"):
        call("admin.casemate.policy.Check", "..", "dom0", RULE)


def test_an_explanation_has_the_rule_and_what_would_change_it(daemon: FakeDaemon) -> None:
    found = explained(daemon, "work my.Service+arg vault")
    assert str(found["verdict"]).startswith("denied")
    assert found["change"] == {"line": "my.Service +arg work vault allow", "file": "30-user.policy", "before": 0}
    daemon.client().call("policy.Replace", "30-user", "dom0", "new\nmy.Service +arg work vault allow\n")
    found = explained(daemon, "work my.Service+arg vault")
    rule = found["rule"]
    assert found["verdict"] == "allowed, goes to vault" and isinstance(rule, dict) and "30-user" in rule["where"]
    for wrong in ("", "work", "work a b c", "nobody my.Service", "work my.Service %", "work ../x"):
        with pytest.raises(CasemateError):
            explained(daemon, wrong)
    (daemon.socket.parents[1] / "policy.d" / "10-x.policy").write_text("nonsense\n")
    with pytest.raises(CasemateError, match="10-x"):
        explained(daemon, "work my.Service vault")


# ------------------------------------------------------------------------------------------------------------ the page


def test_a_file_is_written_checked_changed_and_removed(daemon: FakeDaemon, web: Page) -> None:
    assert 'value="new"' in read(web, "/view/policy/file?name=30-user")
    status, _, text = post(web, "/policy/check", name="30-user", text=RULE + "\r\n")
    assert status == 200 and 'class="good"' in text
    status, _, text = post(web, "/policy/check", name="30-user", text=RULE + "\r\nnonsense <b>\r\n")
    assert status == 200 and ":2:" in text and "<b>" not in text
    assert post(web, "/policy/replace", name="30-user", token="new", text=RULE + "\r\n")[0] == 200
    token, _, text = daemon.client().call("policy.Get", "30-user").partition("\n")
    assert text == RULE + "\n", "lines end as in a file"
    shown = read(web, "/view/policy/file?name=30-user")
    assert token in shown and RULE in shown
    status, _, text = post(web, "/policy/replace", name="30-user", token="new", text=RULE)
    assert status == 409 and "exists" in text
    daemon.client().call("policy.Replace", "30-user", "dom0", f"any\n{RULE}\n# someone else\n")
    status, _, text = post(web, "/policy/replace", name="30-user", token=token, text="")
    assert status == 409 and "changed meanwhile" in text, "nothing of others is overwritten"
    status, _, text = post(web, "/policy/replace", name="30-user", token="any", text="a\u00fc\r\n")
    assert status == 409 and "Line 1" in text
    assert post(web, "/policy/remove", name="30-user", token=token)[0] == 409
    assert post(web, "/policy/remove", name="30-user", token="any")[0] == 200
    assert "30-user" not in daemon.client().call("policy.List")


def test_wrong_files_are_refused(web: Page) -> None:
    for fields in ({"name": "../x"}, {"name": ""}, {"name": "a", "kind": "admin"}, {"name": "90-default"},
                   {"name": "10-paranoid-restore"}):  # fmt: skip
        assert post(web, "/policy/replace", **fields, token="any", text="")[0] == 409
    assert post(web, "/policy/replace", name="a", token="any\nx", text="")[0] == 409
    assert "readonly" in read(web, "/view/policy/file?name=90-default")


def test_a_refusal_becomes_a_rule(daemon: FakeDaemon, web: Page) -> None:
    asked = {"source": "work", "service": "my.Service+arg", "target": "vault"}
    text = read(web, f"/view/policy?{urlencode(asked)}")
    assert "Denied" in text and "Put it into 30-user" in text
    line = "my.Service +arg work vault allow"
    status, headers, _ = post(web, "/policy/rule", **asked, kind="policy", name="30-user", before="0", line=line)
    assert status == 200 and "my.Service%2Barg" in headers["x-next"]
    assert "Allowed" in read(web, f"/view/policy?{urlencode(asked)}")
    assert post(web, "/policy/rule", **asked, name="30-user", before="1", line="my.Service * work vault deny")[0] == 200
    found = daemon.client().call("policy.Get", "30-user").splitlines()[1:]
    assert found == ["my.Service * work vault deny", line], "before the line of that number"
    for wrong in ("", "a\nb", "nonsense"):
        assert post(web, "/policy/rule", **asked, name="30-user", before="0", line=wrong)[0] == 409
    assert daemon.client().call("policy.Get", "30-user").splitlines()[1:] == found


def test_files_that_cannot_be_changed_are_not_offered() -> None:
    assert editable("30-user.policy") == ("policy", "30-user")
    assert editable("include/mine") == ("policy.include", "mine")
    assert editable("10-paranoid-restore.policy") is None
    assert editable("90-default.policy") is editable("/run/x/30-user.policy") is editable("include/a/b") is None


def test_a_read_only_page_has_no_forms_that_change(daemon: FakeDaemon) -> None:
    with page(daemon.socket.parents[1], "--read-only") as web:
        asked = {"source": "work", "service": "my.Service", "target": "vault"}
        text = read(web, f"/view/policy?{urlencode(asked)}") + read(web, "/view/policy/file?name=30-user")
        assert "data-post" not in text and "my.Service * work vault allow" in text, "what to write is said all the same"
        for path in ("check", "replace", "remove", "rule"):
            assert post(web, f"/policy/{path}", name="a", token="any", text="")[0] == 403


# --------------------------------------------------------------------------------------------------------------- calls


@pytest.fixture
def calls(daemon: FakeDaemon) -> Iterator[Calls]:
    """The daemon's real report of calls."""
    made = Calls()
    path = settings_in(daemon.socket.parents[1]).trace_socket
    asyncio.run_coroutine_threadsafe(made.start(path), daemon.loop).result(20)
    yield made
    asyncio.run_coroutine_threadsafe(made.close(), daemon.loop).result(20)


def test_calls_are_followed_while_somebody_looks(daemon: FakeDaemon, web: Page, calls: Calls) -> None:
    def watched() -> bool:
        return bool(calls._watchers)

    assert "not followed yet" in read(web, "/part/calls") and not watched()
    with web.stream(topics="calls") as messages:
        next(message for message in messages if not message["lost"])
        wait_for(watched, 20)
        wait_for(lambda: "No qube has called" in read(web, "/part/calls"), 20)
        evil = "<img src=x>\u202e"

        def happen() -> None:
            call = calls.begin("work", "my.Service", "arg", evil)
            calls.step(call, "decided", final="vault")
            calls.ended(call, 127)
            other = calls.begin("work", "other.Service", "", "vault")
            calls.refused(other, "policy", "denied by rule")
            calls.ended(other)  # as the broker does with each call that it has begun

        daemon.loop.call_soon_threadsafe(happen)
        next(message for message in messages if "calls" in message["topics"])
        wait_for(lambda: "other.Service" in read(web, "/part/calls"), 20)
        text = read(web, "/part/calls")
        assert "no such service" in text and "denied by rule (policy)" in text and "→ vault" in text
        assert "<img" not in text and "\u202e" not in text
        assert "#/policy?source=work&amp;service=other.Service&amp;target=vault" in text and "Make a rule" in text
        assert text.index("other.Service") < text.index("my.Service"), "the newest first"
    wait_for(lambda: not watched(), 20)
    assert "not followed yet" in read(web, "/part/calls")


def test_calls_are_bounded(daemon: FakeDaemon, web: Page, calls: Calls) -> None:
    with web.stream(topics="calls"):
        wait_for(lambda: bool(calls._watchers), 20)
        for number in range(KEPT_CALLS + 50):
            daemon.loop.call_soon_threadsafe(
                calls.not_begun, "work", "my.Service", f"n{number}", "vault", "policy", "denied"
            )
        wait_for(lambda: f"n{KEPT_CALLS + 49}<" in read(web, "/part/calls"), 20)
        assert read(web, "/part/calls").count("<tr data-key") == KEPT_CALLS


def test_a_daemon_that_goes_is_followed_again(daemon: FakeDaemon, web: Page) -> None:
    path = settings_in(daemon.socket.parents[1]).trace_socket
    with web.stream(topics="calls"):
        wait_for(lambda: "cannot be followed" in read(web, "/part/calls"), 20)
        made = Calls()
        asyncio.run_coroutine_threadsafe(made.start(path), daemon.loop).result(20)
        wait_for(lambda: "No qube has called" in read(web, "/part/calls"), 20)
        asyncio.run_coroutine_threadsafe(made.close(), daemon.loop).result(20)
        path.unlink(missing_ok=True)
        wait_for(lambda: 'class="bad"' in read(web, "/part/calls"), 20)
