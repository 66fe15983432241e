"""qvm-features-request: ask the host to note what this qube supports."""

from __future__ import annotations

import os
import sys

from casemate.agent.qubesdb_tool import SOCKET as DATABASE
from casemate.calls.caller import run_call
from casemate.calls.request import SOCKET, connect, request
from casemate.qdb.client import QubesDB
from casemate.wire.errors import CallRefusedError, CasemateError
from casemate.wire.names import feature_name
from casemate.wire.qrexec import EXIT_REFUSED

PREFIX = "/features-request/"


def main(argv: list[str]) -> int:
    """``qvm-features-request [--commit] [FEATURE=VALUE ...]``; 0, or 1 when something was wrong, 126 refused."""
    words = argv[1:]
    commit = "--commit" in words
    pairs = [word.partition("=") for word in words if word != "--commit"]
    if (not pairs and not commit) or any(not equals for _name, equals, _value in pairs):
        sys.stderr.write("usage: qvm-features-request [--commit] [FEATURE=VALUE ...]\n")
        return 2
    try:
        with QubesDB(os.environ.get("QUBESDB_SOCKET") or DATABASE) as database:
            for name, _equals, value in pairs:
                database.write(PREFIX + feature_name(name), value.encode("ascii"))
        if commit:
            sock = connect(os.environ.get("QREXEC_AGENT_SOCKET") or SOCKET)
            request(sock, "@adminvm", "qubes.FeaturesRequest")
            return run_call(sock, None, 1, 2)
    except CallRefusedError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_REFUSED
    except UnicodeEncodeError:
        sys.stderr.write("qvm-features-request: values are ASCII\n")
        return 1
    except CasemateError as error:
        sys.stderr.write(f"qvm-features-request: {error}\n")
        return 1
    return 0
