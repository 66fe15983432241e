"""``casemate policy explain``: which rule decides about a call, which nearly did, what would change it."""

from __future__ import annotations

from casemate.cli import json_output
from casemate.cli.policy_view import files, system
from casemate.client.qubes import Qubes
from casemate.qrexec.evaluate import Allow
from casemate.qrexec.explain import explain, facts, verdict
from casemate.qrexec.tokens import ADMIN, HOST
from casemate.wire.errors import CasemateError, NotFoundError, PolicyError, printable
from casemate.wire.qrexec import parse_call, requested_target


def run(qubes: Qubes, source: str, call: str, asked: str, as_json: bool = False) -> int:
    """Print the explanation, for people or as JSON."""
    service, argument = parse_call(call)
    target = requested_target(asked)
    info = system(qubes)
    if info.find(HOST if source == ADMIN else source) is None:
        raise NotFoundError(source)
    view = files(qubes.transport.settings)
    try:
        policy = view.load()
    except PolicyError as error:
        raise CasemateError(f"THE POLICY IS BROKEN, every call is denied until this is corrected: {error}") from None
    found = explain(policy, info, source, service, argument or "", target)
    decision = found.decision
    where = str(view.directory / found.file) if found.file and "/" not in found.file else found.file
    if as_json:
        told = facts(found)
        if told["change"]:
            told["change"]["file"] = where
        return json_output.write(
            {"source": source, "service": service, "argument": argument or "", "target": asked, **told}
        )
    print(f"{service}+{argument or ''} of {source} to {printable(asked) or '(no target)'}: {verdict(decision)}")
    if decision.rule is not None:
        print(f"\nThis rule decides:\n  {decision.rule.location}: {decision.rule}")
    if found.near:
        print("\nThese come before it and nearly fit:" if decision.rule is not None else "\nThese nearly fit:")
        for rule, why in found.near:
            print(f"  {rule.location}: {rule}\n      {why}")
    if found.line:
        what = "deny" if isinstance(decision, Allow) else "allow"
        line = f", before line {found.before}" if found.before else ""
        print(f"\nTo {what} it put this line into {where}{line}:\n  {found.line}")
    else:
        print("\nNo rule can change this.")
    return 0
