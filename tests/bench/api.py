"""``python -m tests.bench.api [N …]``: the Admin API's speed, a connection for each request as upstream's client does.

A daemon of its own with the real server, API and store serves 10, 100 and 1,000 qubes (there is no hypervisor: nothing
runs). In the same run an asyncio server on a unix socket answers the same requests with replies of the same size at
once: the limit for a server of this kind. Aims are those of the project: five times upstream's requests/s at 1,000
qubes, flat in N for a call about one qube, ``qvm-ls`` in a fifth of upstream's time.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

from casemate.settings import Settings
from casemate.store.store import Store
from casemate.wire import admin
from tests.bench import figures
from tests.builders import settings_in

UPSTREAM = {
    "label.List": {10: 2420, 100: 1110, 1000: 172},
    "property.Get": {10: 2155, 100: 1448, 1000: 128},
    "property.GetAll": {10: 782, 100: 478, 1000: 71},
    "vm.List": {10: 2500, 100: 1053, 1000: 74},
}
"""Requests a second of upstream's daemon, one client; vm.List from its wall time for one call."""
UPSTREAM_LS = {10: 258, 100: 512, 1000: 7615}
UPSTREAM_RSS = {10: 54, 100: 58, 1000: 98}
ROWS: list[str] = []
NOTES: list[str] = []
BIN = Path(__file__).resolve().parents[2] / "bin"


def populate(path: Path, count: int) -> None:
    """A store of ``count`` qubes besides dom0: templates, net qubes, application qubes with features and tags."""
    store = Store(path)
    with store.write() as transaction:
        system = transaction.system
        templates = max(1, count // 50)
        for number in range(count):
            uuid = UUID(int=number + 1)
            if number < templates:
                system.add("TemplateVM", f"tpl-{number:02}", uuid=uuid)
                continue
            name = {templates: "sys-net", templates + 1: "sys-firewall"}.get(number, f"work-{number:04}")
            domain = system.add("AppVM", name, uuid=uuid, template=f"tpl-{number % templates:02}")
            if name.startswith("sys-"):
                domain.set_text("provides_network", "True")
                domain.set_text("netvm", "sys-net" if name == "sys-firewall" else "")
            elif number == templates + 2:
                system.set_text("default_netvm", "sys-firewall")
            for extra in range(3):
                domain.features.set(f"feature-{extra}", "1")
                domain.tags.add(f"tag-{extra}")
    store.close()


def requests(name: str) -> dict[str, bytes]:
    return {
        "label.List": admin.build_request("admin.label.List"),
        "vm.List": admin.build_request("admin.vm.List"),
        "property.Get": admin.build_request("admin.vm.property.Get", "label", name),
        "property.GetAll": admin.build_request("admin.vm.property.GetAll", "", name),
    }


def _daemon(directory: str) -> None:
    from tests.fakes.daemon import running

    with running(Path(directory)):
        time.sleep(3600)


def _echo(path: str, reply: bytes) -> None:
    class Echo(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = transport

        def eof_received(self) -> bool:
            self.transport.write(reply)  # type: ignore[attr-defined]
            self.transport.close()
            return True

    async def serve() -> None:
        server = await asyncio.get_running_loop().create_unix_server(Echo, path, backlog=1024)
        await server.serve_forever()

    asyncio.run(serve())


@contextmanager
def program(path: Path, target: Callable[..., None], *args: object) -> Iterator[multiprocessing.Process]:
    """A server as a process of its own, until the block ends."""
    process = multiprocessing.get_context("spawn").Process(target=target, args=args, daemon=True)
    process.start()
    deadline = time.monotonic() + 60
    while True:
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(path))
                break
            except OSError:
                assert time.monotonic() < deadline and process.is_alive()
                time.sleep(0.01)
    try:
        yield process
    finally:
        process.kill()
        process.join()
        path.unlink(missing_ok=True)


def ask(path: str, request: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        parts = []
        while part := connection.recv(65536):
            parts.append(part)
        return b"".join(parts)


def rate(path: Path, request: bytes, seconds: float = 1.0, rounds: int = 3) -> tuple[float, float, float]:
    """Requests a second (median of rounds), median and 99th percentile of one in ms."""
    text, rates, times = str(path), [], []
    ask(text, request)
    for _ in range(rounds):
        begin = now = time.perf_counter()
        done = 0
        while now - begin < seconds:
            ask(text, request)
            after = time.perf_counter()
            times.append(after - now)
            now, done = after, done + 1
        rates.append(done / (now - begin))
    times.sort()
    return statistics.median(rates), times[len(times) // 2] * 1e3, times[int(len(times) * 0.99)] * 1e3


def resident_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6


def tool_ms(settings: Settings, lines: int, *argv: str, rounds: int = 7) -> float:
    environment = {**os.environ, **settings.environment()}
    found = []
    shown = subprocess.run([BIN / argv[0], *argv[1:]], env=environment, stdout=subprocess.PIPE, check=True).stdout
    assert shown.count(b"\n") > lines, shown[:200]
    for _ in range(rounds):
        begin = time.perf_counter()
        subprocess.run([BIN / argv[0], *argv[1:]], env=environment, stdout=subprocess.DEVNULL, check=True)
        found.append(time.perf_counter() - begin)
    return statistics.median(found) * 1e3


def measure(count: int) -> None:
    directory = Path(tempfile.mkdtemp(prefix="cmb", dir="/tmp"))  # noqa: S108  (unix sockets want short paths)
    try:
        populate(directory / "qubes.xml", count)
        settings = settings_in(directory)
        name = f"work-{count - 1:04}"
        sock, echo = directory / "run" / "qubesd.sock", directory / "echo.sock"
        with program(sock, _daemon, str(directory)) as daemon:
            for call, request in requests(name).items():
                reply = ask(str(sock), request)
                assert reply.startswith(b"0\0"), reply
                ours, median, late = rate(sock, request)
                with program(echo, _echo, str(echo), reply):
                    limit, *_ = rate(echo, request, rounds=2)
                upstream = UPSTREAM[call][count]
                cells = (count, call, len(reply), f"{ours:.0f}", f"{median:.2f}", f"{late:.2f}", f"{limit:.0f}",
                         f"{ours / limit:.2f}", upstream, f"{ours / upstream:.1f}")  # fmt: skip
                ROWS.append("| " + " | ".join(map(str, cells)) + " |")
                verdict = ("met" if ours >= 5 * upstream else "MISSED") if count == 1000 else ""
                print(
                    f"{count:>6}  {call:<16} {len(reply):>7} {ours:>9.0f} {median:>8.2f} {late:>8.2f} {limit:>9.0f}"
                    f" {ours / limit:>7.2f} {upstream:>9} {ours / upstream:>8.1f}x  {verdict}",
                    flush=True,
                )
            listing, prefs = tool_ms(settings, count, "qvm-ls"), tool_ms(settings, 20, "qvm-prefs", name)
            aim = ("met" if listing <= 0.2 * UPSTREAM_LS[count] else "MISSED") if count == 1000 else ""
            NOTES.append(
                f"* {count} qubes: `qvm-ls` {listing:.0f} ms (upstream {UPSTREAM_LS[count]}), `qvm-prefs QUBE` "
                f"{prefs:.0f} ms; daemon {resident_mb(daemon.pid or 0):.0f} MB (upstream {UPSTREAM_RSS[count]})."
            )
            print(
                f"{count:>6}  qvm-ls {listing:.0f} ms (upstream {UPSTREAM_LS[count]} ms) {aim};"
                f" qvm-prefs {prefs:.0f} ms;"
                f" daemon {resident_mb(daemon.pid or 0):.0f} MB (upstream {UPSTREAM_RSS[count]} MB)",
                flush=True,
            )
    finally:
        shutil.rmtree(directory)


def publish() -> None:
    """Write the rows to the page of figures."""
    head = (
        "Qubes",
        "Call",
        "Bytes",
        "Requests/s",
        "p50 ms",
        "p99 ms",
        "Echo server/s",
        "Part of it",
        "Upstream",
        "Ratio",
    )
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *ROWS]
    how = (
        "One client, one connection for each request. The echo server is asyncio's, answers with as many bytes at "
        "once, and ran in turn with ours. There is no hypervisor in this run. Aims at 1,000 qubes: 5 times upstream's "
        "requests/s, `qvm-ls` within 0.2 of its time. By `python -m tests.bench.api --write`."
    )
    figures.write("bench api", "Admin API", "\n".join([*lines, "", *NOTES, "", how]))


def main() -> int:
    print("Aims at 1000 qubes: 5x upstream's requests/s, qvm-ls within 0.2 of its time; single calls flat in N.")
    print(f"{'qubes':>6}  {'call':<16} {'bytes':>7} {'req/s':>9} {'p50 ms':>8} {'p99 ms':>8} {'echo/s':>9} {'of it':>7}"
          f" {'upstream':>9} {'ratio':>9}")  # fmt: skip
    words = [word for word in sys.argv[1:] if word != "--write"]
    for count in [int(word) for word in words] or [10, 100, 1000]:
        measure(count)
    if "--write" in sys.argv[1:]:
        publish()
    return 0


if __name__ == "__main__":
    sys.exit(main())
