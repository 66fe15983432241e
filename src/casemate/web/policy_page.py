"""The page of the policy: files with an editor, what decides about a call, calls as they happen, rules of refusals."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from casemate.web import rendering
from casemate.web.admin_api import AdminApi
from casemate.web.call_trace import KEPT_CALLS, CallTrace
from casemate.web.forms import form
from casemate.web.live import Live
from casemate.wire.errors import CasemateError, PolicyFileNotFoundError, ValueInvalidError
from casemate.wire.names import number

KINDS = {"policy": "policy.d", "policy.include": "policy.d/include"}
"""Prefixes of the methods of both kinds of files, and where these are below the state."""
DELIVERED = ("10-paranoid-restore", "90-default")
"""The files that come with Casemate: they cannot be changed."""


class PolicyPage:
    """Keeps nothing but the calls that it follows."""

    def __init__(self, api: AdminApi, live: Live, read_only: bool) -> None:
        self._api = api
        self._read_only = read_only
        self.trace = CallTrace(api, live)

    def routes(self) -> list[Route]:
        """The addresses of this page."""
        return [
            Route("/view/policy", self._page),
            Route("/view/policy/file", self._file),
            Route("/part/calls", self._calls),
            Route("/policy/check", self._check, methods=["POST"]),
            Route("/policy/replace", self._replace, methods=["POST"]),
            Route("/policy/remove", self._remove, methods=["POST"]),
            Route("/policy/rule", self._add_rule, methods=["POST"]),
        ]

    # ------------------------------------------------------------------------------------------------- what is shown

    async def _page(self, request: Request) -> Response:
        asked = {name: request.query_params.get(name, "").strip() for name in ("source", "service", "target")}
        status, files, includes = await asyncio.gather(
            self._api.call("admin.casemate.Status"),
            self._api.call("policy.List"),
            self._api.call("policy.include.List"),
        )
        explained, wrong, place = None, "", None
        if asked["source"] and asked["service"]:
            try:
                explained = await self._explain(asked)
                place = editable(explained["change"]["file"]) if explained["change"] else None
            except CasemateError as error:
                wrong = str(error)
        html = rendering.render(
            "policy.html",
            state=json.loads(status).get("policy", ""),
            files=[*(("policy", name) for name in files.split()),
                   *(("policy.include", name) for name in includes.split())],
            kinds=KINDS, delivered=DELIVERED, asked=asked, explained=explained, wrong=wrong, place=place,
            read_only=self._read_only, most=KEPT_CALLS,
        )  # fmt: skip
        return HTMLResponse(html)

    async def _explain(self, asked: dict[str, str]) -> dict[str, Any]:
        words = [asked["source"], asked["service"], *([asked["target"]] if asked["target"] else [])]
        if any(" " in word for word in words):
            raise ValueInvalidError("Source, service and target are one word each")
        found: dict[str, Any] = json.loads(
            await self._api.call("admin.casemate.policy.Explain", payload=" ".join(words))
        )
        return found

    async def _calls(self, _request: Request) -> Response:
        calls = self.trace.newest()
        return HTMLResponse(rendering.render("calls.html", calls=calls, why_not=self.trace.why_not, quote=quote))

    async def _file(self, request: Request) -> Response:
        kind, name = file_of(request.query_params)
        token, text, new = "new", "", True
        try:
            token, _, text = (await self._api.call(f"{kind}.Get", name)).partition("\n")
            new = False
        except PolicyFileNotFoundError:
            pass  # it is made when it is saved
        locked = self._read_only or (kind == "policy" and name in DELIVERED)
        html = rendering.render(
            "policy_file.html", kind=kind, name=name, token=token, text=text, new=new, locked=locked, place=KINDS[kind]
        )
        return HTMLResponse(html)

    # -------------------------------------------------------------------------------------------------- what is done

    async def _check(self, request: Request) -> Response:
        """What the daemon finds in a text while it is typed, as HTML."""
        fields = await form(request)
        kind, name = file_of(fields)
        wrong = await self._api.call(f"admin.casemate.{kind}.Check", name, payload=ascii_text(fields.get("text", "")))
        return HTMLResponse(rendering.render("policy_check.html", wrong=wrong))

    async def _replace(self, request: Request) -> Response:
        fields = await form(request)
        kind, name = file_of(fields)
        await self._write(kind, name, fields.get("token", ""), ascii_text(fields.get("text", "")))
        return PlainTextResponse(f"{name} is saved and counts from now on.")

    async def _remove(self, request: Request) -> Response:
        fields = await form(request)
        kind, name = file_of(fields)
        await self._api.call(f"{kind}.Remove", name, payload=fields.get("token", ""))
        return PlainTextResponse(f"{name} is removed.", headers={"x-next": "#/policy"})

    async def _add_rule(self, request: Request) -> Response:
        """Put a line into a file, before the line of a number or at the end, and show what is decided then."""
        fields = await form(request)
        kind, name = file_of(fields)
        line, before = ascii_text(fields.get("line", "")).strip(), number(fields.get("before", "0"), "before", 0, 10**6)
        if not line or "\n" in line:
            raise ValueInvalidError("A rule is one line")
        try:
            token, _, text = (await self._api.call(f"{kind}.Get", name)).partition("\n")
        except PolicyFileNotFoundError:
            token, text = "new", ""
        lines = text.splitlines()
        lines.insert(before - 1 if before else len(lines), line)
        await self._write(kind, name, token, "\n".join([*lines, ""]))
        asked = "&".join(f"{key}={quote(fields.get(key, ''), safe='')}" for key in ("source", "service", "target"))
        return PlainTextResponse(f"The rule is in {name}.", headers={"x-next": f"#/policy?{asked}"})

    async def _write(self, kind: str, name: str, token: str, text: str) -> None:
        if not token or "\n" in token:
            raise ValueInvalidError("The token of the file is missing")
        await self._api.call(f"{kind}.Replace", name, payload=f"{token}\n{text}")


def file_of(fields: Any) -> tuple[str, str]:
    """Kind and name of the file that a form or an address means. The daemon checks the name."""
    kind = fields.get("kind") or "policy"
    if kind not in KINDS:
        raise ValueInvalidError("There are two kinds of files: policy and policy.include")
    return kind, str(fields.get("name", "")).strip()


def editable(file: str) -> tuple[str, str] | None:
    """Kind and name of a file as an explanation names it; None for one elsewhere, which the Admin API cannot change."""
    if file.startswith("include/") and "/" not in file[8:]:
        return "policy.include", file[8:]
    if "/" in file or not file.endswith(".policy") or file.removesuffix(".policy") in DELIVERED:
        return None
    return "policy", file.removesuffix(".policy")


def ascii_text(text: str) -> str:
    """The text of a form as a file has it: lines end in LF, which forms send as CR LF. ValueInvalidError names what is
    not ASCII, with its line."""
    text = text.replace("\r\n", "\n")
    for count, line in enumerate(text.split("\n"), 1):
        if not line.isascii():
            raise ValueInvalidError(f"Line {count} has a character that is not ASCII; a policy may have none")
    return text
