"""What is fuzzed: each target is given bytes and checks what must hold whatever they are.

A target may only end well or fail an assertion: the errors that a parser promises are caught, everything else counts
as found. ``chunks`` cuts the bytes by their own first bytes, so that a fuzzer finds cuts too.

One file although it is long: the list of targets is read as a whole by the runner.
"""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from casemate.agent.open_file import parse_name as parse_open_name
from casemate.agent.open_in_vm import NAME_SIZE
from casemate.agent.service import parse_config
from casemate.agent.updates_proxy import PORTS, Refused
from casemate.agent.updates_proxy import parse as parse_proxy_request
from casemate.backup import contents as backup_contents
from casemate.backup import header as backup_header
from casemate.backup.errors import BackupError, RefusedError
from casemate.backup.filters import Source
from casemate.backup.outer import members, write_member
from casemate.backup.tar_reader import Collected, only_file
from casemate.backup.tar_writer import BytesContent, archive
from casemate.filecopy.limits import Limits
from casemate.filecopy.unpack import Unpacker
from casemate.qdb.mirror import GuestMirror, HostMirror
from casemate.qdb.session import Database, LocalSession
from casemate.qrexec import policy_socket
from casemate.qrexec.evaluate import QubeInfo, SystemInfo, evaluate
from casemate.qrexec.parser import Parser
from casemate.qrexec.rules import Policy
from casemate.wire import (
    admin,
    call_data,
    dhcp,
    dns,
    firewall,
    link,
    menus,
    mux,
    names,
    qdb,
    qfile,
    qrexec,
    qrexec_control,
)
from casemate.wire.errors import CasemateError, PolicyError, ProtocolError, ValueInvalidError
from casemate.wire.vmexec import decode_vmexec, encode_vmexec

Target = Callable[[bytes], None]
TARGETS: dict[str, Target] = {}


def target(function: Target) -> Target:
    """Register a target under its name."""
    TARGETS[function.__name__.replace("_", "-")] = function
    return function


def chunks(data: bytes) -> Iterator[bytes]:
    """The data after its first byte, in pieces of a length that this byte says."""
    step = data[0] % 64 + 1 if data else 1
    for at in range(1, len(data), step):
        yield data[at : at + step]


@target
def channel_of_the_host(data: bytes) -> None:
    """A guest's bytes after the session began: events of streams that are open, or the channel is closed."""
    one = mux.Mux(host=True)
    nonce = b"0123456789abcdef"
    one.reset(nonce)
    assert list(one.feed(mux.ACK + nonce)) == []
    open_streams: set[int] = set()
    # Trailers are the tag: without it the fuzzer would have to guess four bytes for each frame.
    framed = b"".join(_frame(piece, nonce[: mux.TRAILER]) for piece in chunks(data))
    try:
        for kind, number, payload in one.feed(framed):
            if kind == mux.OPEN:
                assert number not in open_streams and number & 1
                open_streams.add(number)
            else:
                assert number in open_streams
            if kind == mux.ABORT:
                open_streams.discard(number)
            assert len(payload) <= mux.MAX_PAYLOAD
            assert len(open_streams) <= mux.MAX_STREAMS
        one.output.clear()
    except ProtocolError:
        pass


def _frame(piece: bytes, tag: bytes) -> bytes:
    """Bytes as a frame whose header is likely to be one."""
    if len(piece) < 3:
        return piece
    return mux.HEADER.pack(piece[0], len(piece) - 2, mux.OPEN + piece[1] % 6) + piece[2:] + tag


@target
def channel_of_the_guest(data: bytes) -> None:
    """A host that was replaced in the middle of anything: the guest never fails, it looks for the next session."""
    one = mux.Mux(host=False)
    for piece in chunks(data):
        for _kind, _number, payload in one.feed(piece):
            assert len(payload) <= mux.MAX_PAYLOAD
    host = mux.Mux(host=True)
    host.reset(b"fedcba9876543210")
    list(one.feed(b"".join(bytes(piece) for piece in host.output)))
    assert one.connected
    list(host.feed(b"".join(bytes(piece) for piece in one.output)))
    assert host.connected


@target
def data_phase(data: bytes) -> None:
    """Either side of a call: only its own kinds of bytes, never after the end, cut as they come or not."""
    for make, kinds in (
        (call_data.CallerSide, {qrexec.DATA_STDOUT, qrexec.DATA_STDERR, qrexec.DATA_EXIT_CODE}),
        (call_data.ServiceSide, {qrexec.DATA_STDIN}),
    ):
        results = []
        for pieces in (list(chunks(data)), [data[1:]]):
            side, heard = make(), b""  # type: ignore[operator]
            try:
                for piece in pieces:
                    for kind, view in side.feed(piece):
                        assert kind in kinds
                        heard += bytes([kind & 255]) * len(view) + bytes(view)
                failed = False
            except ProtocolError:
                failed = True
            results.append((failed, side.exit_code) if failed else (failed, side.exit_code, sorted(heard)))
        assert results[0] == results[1], "how the bytes are cut must not matter"


@target
def call_requests(data: bytes) -> None:
    """Requests of guests and of hosts: what is accepted is well formed and can be said again."""
    for parse in (qrexec.parse_trigger4, qrexec.parse_exec, link_object):
        try:
            found = parse(data)
        except CasemateError:
            continue
        if isinstance(found, qrexec.Trigger):
            assert names.service_name(found.service) and len(found.ident) == qrexec.IDENT
            qrexec.requested_target(found.target)
    try:
        text = data.decode("ascii")
        command = qrexec.parse_command(text)
    except (UnicodeDecodeError, CasemateError):
        return
    assert qrexec.parse_command(command.cmdline()).cmdline() == command.cmdline()
    assert "\0" not in command.cmdline() and "/" not in command.service


def link_object(data: bytes) -> object:
    """A control message's body."""
    return link.parse_object(data, "message")


@target
def vmexec(data: bytes) -> None:
    """The encoding of command lines: what is decoded and encoded means the same."""
    try:
        text = data.decode("ascii")
        words = decode_vmexec(text)
    except (UnicodeDecodeError, CasemateError):
        return
    assert decode_vmexec(encode_vmexec(words)) == words


@target
def vchan_requests(data: bytes) -> None:
    """Requests of foreign agents in each version: refused, or names that a policy can be asked about."""
    for kind in (qrexec.TRIGGER_SERVICE, qrexec.TRIGGER_SERVICE3, qrexec.TRIGGER_SERVICE4):
        least = {qrexec.TRIGGER_SERVICE: 128, qrexec.TRIGGER_SERVICE3: 97, qrexec.TRIGGER_SERVICE4: 161}[kind]
        body = data.ljust(least, b"\0")
        if kind == qrexec.TRIGGER_SERVICE:
            body = body[:128]
        try:
            found = qrexec_control.parse_request(kind, body)
        except ValueInvalidError:
            continue
        assert found.service and "/" not in found.call and "\0" not in found.call and found.call.isascii()
        assert len(found.service) <= qrexec_control.NAME_MAX and len(found.ident) == qrexec.IDENT
    for parse in (qrexec_control.parse_hello, qrexec_control.command_text):
        try:
            parse(data[:4].ljust(4, b"\0") if parse is qrexec_control.parse_hello else data)
        except ProtocolError:
            pass


@target
def database_programs(data: bytes) -> None:
    """Programs on a database's socket: each record is answered or the connection ends; all stays bounded."""
    base = Database()
    one, other = LocalSession(base), LocalSession(base, read_only=True)
    base.attach(one)
    base.attach(other)
    other.feed(qdb.record(qdb.WATCH, "/"))
    for piece in (*_records(data), *chunks(data)):
        one.feed(piece)
        one.take_output()
        other.take_output()
    for path, value in base.tree.items():
        assert path.startswith("/") and len(path) <= 63 and len(value) < 3072


@target
def database_of_a_guest(data: bytes) -> None:
    """The guest's half alone may change nothing that is the host's."""
    base = Database()
    base.write("/name", b"work")
    base.write("/qubes-service/x", b"1")
    host = HostMirror(base, clock=lambda: 0.0)
    base.attach(host)
    for piece in (qdb.record(qdb.MULTIREAD, ""), *_records(data), *chunks(data)):
        host.feed(piece)
        host.take_output()
    assert base.tree.read("/name") == b"work" and base.tree.read("/qubes-service/x") == b"1"
    for path, value in base.tree.items():
        assert names.database_path(path) and len(value) < 3072


def _records(data: bytes) -> Iterator[bytes]:
    """Bytes as records whose fixed part is right."""
    for piece in chunks(data):
        path, _, value = piece[1:].partition(b"=")
        yield piece[:1] + path[:63].ljust(64, b"\0") + bytes(3) + len(value).to_bytes(4, "little") + value


@target
def database_in_a_guest(data: bytes) -> None:
    """What a host says to the guest's half: taken, or the session ends."""
    base = Database(guest=True)
    mirror = GuestMirror(base)
    base.attach(mirror)
    for piece in (*_records(data), *chunks(data)):
        mirror.feed(piece)
        mirror.take_output()


@target
def file_records(data: bytes) -> None:
    """Headers, names, links and results of qfile."""
    try:
        header = qfile.parse_header(data[:32].ljust(32, b"\0"))
        if header is not None:
            assert header.permissions <= 0o777 and header.size < 1 << 63
    except qfile.FileError as error:
        assert error.code
    try:
        parts = qfile.parse_name(data + b"\0")
        assert parts and all(part and part not in (b".", b"..") and b"/" not in part for part in parts)
        qfile.check_link(parts, data[::-1])
    except qfile.FileError:
        pass
    reader = qfile.ResultReader()
    try:
        for piece in chunks(data):
            reader.feed(piece)
            reader.get(False)
        found = reader.get(True)
        assert found is None or len(found.last_name) <= qfile.MAX_NAME
    except ProtocolError:
        pass
    assert qfile.shown(data).isascii() and qfile.shown(data).isprintable()


@target
def unpacker(data: bytes) -> None:
    """A whole stream into a real directory: nothing outside, nothing left of a failure, within the limits."""
    stream = bytes(_stream(data))
    with tempfile.TemporaryDirectory(dir=_memory()) as top:
        inside = Path(top) / "in"
        inside.mkdir()
        (inside / "theirs").write_text("kept")
        fd = os.open(inside, os.O_RDONLY | os.O_DIRECTORY)
        source = os.memfd_create("stream")
        try:
            os.write(source, stream)
            os.lseek(source, 0, os.SEEK_SET)
            try:
                Unpacker(source, fd, Limits({"max-bytes": 4096, "max-files": 16}), idle=0.01).run()
                failed = False
            except (CasemateError, OSError):
                failed = True
        finally:
            os.close(source)
            os.close(fd)
        assert os.listdir(top) == ["in"]
        found = sorted(os.listdir(inside))
        assert (inside / "theirs").read_text() == "kept"
        if failed:
            assert found == ["theirs"], found
        assert sum(path.lstat().st_size for path in inside.rglob("*") if path.is_file()) <= 4096 + 4


def _memory() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108


_NAMES = (
    b"a",
    b"a/b",
    b"a/b/c",
    b"../x",
    b"/x",
    b"a/l",
    b"l",
    b"a/../b",
    b"theirs",
    b".incoming-1",
    b"a//b",
    b"\xff",
    b"b",
)
_MODES = (0o100644, 0o40755, 0o120777, 0o104755, 0o10644, 0o40000)


def _stream(data: bytes) -> Iterator[int]:
    """Bytes as a stream: three of them make an object, its content is taken from what follows."""
    at = 0
    while at + 3 <= len(data):
        name, mode, size = data[at : at + 3]
        at += 3
        raw = _NAMES[name % len(_NAMES)] if name < 240 else data[at : at + name % 16 + 1]
        kind = _MODES[mode % len(_MODES)]
        length = size % 40 if kind != 0o40755 else size % 2
        yield from qfile.HEADER.pack(len(raw) + 1, kind, length, 0, 0, 0, size * 7_000_000 if size > 250 else 0)
        yield from raw + b"\0" + data[at : at + length].ljust(length, b"x")
    if len(data) % 4:
        yield from qfile.END


_QUBES = SystemInfo.fixed(
    [QubeInfo("dom0", "AdminVM", "00000000-0000-0000-0000-000000000000", power_state="Running"),
     QubeInfo("work", "AppVM", "00000000-0000-0000-0000-000000000001", tags=("t",), default_dispvm="dvm"),
     QubeInfo("dvm", "AppVM", "00000000-0000-0000-0000-000000000002", template_for_dispvms=True)]
)  # fmt: skip


CALLS = (
    ("a", "", "dvm"), ("a", "b", "@default"), ("c", "x", "@dispvm"), ("c", "", "nobody"), ("a", "", "@adminvm"),
    ("a", "", "work"),
)  # fmt: skip


@target
def policy(data: bytes) -> None:
    """A policy file: parsed, or an error that names it; a decision never fails, and nothing allowed is denied."""
    parser = Parser()
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return
    try:
        parser.parse("f.policy", text)
    except PolicyError as error:
        assert "f.policy" in str(error)
        parser.rules.clear()
        return
    rules = Policy(parser.rules)
    for service, argument, where in CALLS:
        found = evaluate(rules, _QUBES, "work", service, argument, where)
        if not parser.rules:
            assert type(found).__name__ == "Deny"


@target
def policy_questions(data: bytes) -> None:
    """The policy daemon's line protocol."""
    try:
        found = policy_socket.parse_request(data)
    except ProtocolError:
        return
    names.service_name(found.service)


@target
def admin_api(data: bytes) -> None:
    """Requests, replies, events, lists, properties of the Admin API."""
    try:
        request = admin.parse_request(data)
        assert len(data) <= admin.most_bytes(data[:80]) and request.method and "\0" not in request.arg
    except ProtocolError:
        pass
    try:
        admin.parse_reply(data)
    except CasemateError:
        pass
    reader = admin.EventReader()
    try:
        for piece in chunks(data):
            for event in reader.feed(piece):
                assert event.name
        reader.finish()
    except CasemateError:
        pass
    text = data.decode("utf-8", "replace")
    assert admin.unescape(admin.escape(text)) == text
    try:
        admin.parse_list(text)
        admin.parse_properties(text)
    except CasemateError:
        pass


@target
def firewall_rules(data: bytes) -> None:
    """Rules of the firewall: what is taken is written as it is read."""
    try:
        rules = firewall.parse_rules(data.decode("ascii"))
    except (UnicodeDecodeError, CasemateError):
        return
    assert firewall.parse_rules(firewall.format_rules(rules)) == rules


@target
def dhcp_answers(data: bytes) -> None:
    """What a network sends to a net qube that asks for an address. What is used is an address outside, and bounded."""
    try:
        found = dhcp.parse(data, 7, b"\2\0\0\0\0\3")
        assert found.kind == dhcp.NAK or dhcp.is_outside(found.address)
        assert dhcp.is_outside(found.server) and dhcp.LEAST_SECONDS <= found.seconds <= dhcp.MOST_SECONDS
        assert 1 <= found.length <= 32 and len(found.servers) <= dhcp.MAX_SERVERS
    except ProtocolError:
        pass
    try:
        assert len(dhcp.body_of(data)) <= len(data) - 28
    except ProtocolError:
        pass


@target
def dns_messages(data: bytes) -> None:
    """Queries of served qubes and answers of resolvers. What is a query can be asked on and answered."""
    try:
        asked = dns.parse_query(data)
        assert len(asked.name) <= dns.MAX_NAME and asked.end <= len(data)
        for again in (dns.with_number(data, 7), dns.with_room(data, dns.MAX_UDP)):
            assert dns.parse_query(again).name == asked.name
        assert dns.parse_answer(dns.failure(data, asked, 2), asked) == []
    except ProtocolError:
        pass
    try:
        found = dns.parse_answer(data, dns.parse_query(dns.query("a.example.org", dns.A, 7)))
        assert len(found) <= dns.MAX_ADDRESSES
    except ProtocolError:
        pass


@target
def updates_requests(data: bytes) -> None:
    """Heads of requests to the updates proxy: what is sent on is one head, and goes to a port for updates."""
    try:
        found = parse_proxy_request(data)
    except Refused:
        return
    assert found.port in PORTS and not set(found.host) & set(" \r\n/@:")
    assert found.first == b"" if found.tunnel else found.first.find(b"\r\n\r\n") == len(found.first) - 4


@target
def backups(data: bytes) -> None:
    """What a qube, or whoever keeps a backup, gives for one: its members, its header, an archive, its store."""
    try:
        for one in members(io.BytesIO(data), 10_000):
            assert len(one.data()) <= 10_000
    except RefusedError:
        pass
    image = Collected()
    try:
        only_file(Source(chunks(data), "x"), "a", 10_000, image)
    except BackupError:
        pass
    for parse in (backup_header.parse, backup_contents.parse):
        try:
            parse(data)
        except BackupError:
            pass


_STORE = b"""<qubes><labels><label id="label-1" color="0xcc0000">red</label></labels><domains>
<domain id="domain-1" class="AppVM"><properties><property name="name">work</property><property name="label">label-1
</property></properties><features><feature name="backup-content">1</feature><feature name="backup-path">vm1/</feature>
<feature name="backup-size">10</feature></features><tags><tag name="a"/></tags><volume-config>
<volume name="private" size="10" save_on_stop="True"/></volume-config></domain></domains></qubes>"""


def _member(name: str, data: bytes) -> bytes:
    out = io.BytesIO()
    write_member(out, name, [data])
    return out.getvalue()[:1024]  # without the padding to a tape's record


@target
def configurations(data: bytes) -> None:
    """Configurations of services, menus, names of files to be opened."""
    try:
        parse_config(data)
    except CasemateError:
        pass
    try:
        found = menus.parse_menus(data)
        assert menus.parse_lines(menus.build_lines(found)) == found
    except ProtocolError:
        pass
    try:
        name, _view_only = parse_open_name(data[:NAME_SIZE].ljust(NAME_SIZE, b"\0"))
        assert name.isprintable() and "/" not in name and name not in (".", "..")
    except ProtocolError:
        pass


def seeds(name: str) -> list[bytes]:
    """Something good to start from."""
    good: dict[str, list[bytes]] = {
        "policy": [b"a * work @anyvm allow\n", b"a +b work @default ask default_target=dvm notify=no\n",
                   b"* * @tag:t @dispvm:dvm deny\n# x\n!include y\n!include-service a * p\n!compat-4.0\n",
                   b"c * @type:AppVM @dispvm allow target=@dispvm:dvm user=root autostart=no\n"],
        "admin-api": [admin.build_request("admin.vm.List"), admin.build_event("a", "b", {"c": "d"}),
                      b"2\0X\0\0a%s\0b\0",
                      b"default=True type=int 400\n", b"work class=AppVM state=Halted uuid=1\n"],
        "call-requests": [b"DEFAULT:QUBESRPC a+b work name x", b"work".ljust(64, b"\0") + b"vault".ljust(64, b"\0")
                          + b"SOCKET".ljust(32, b"\0") + b"a.b+c\0", bytes(8) + b"u:QUBESRPC a b\0",
                          b'{"op": "ready"}'],
        "vchan-requests": [b"vault".ljust(64, b"\0") + b"id".ljust(32, b"\0") + b"a+b\0",
                           b"a\0".ljust(64, b"\0") + b"b".ljust(32, b"\0") + b"id".ljust(32, b"\0")],
        "data-phase": [b"\x07" + qrexec.HEADER.pack(kind, 4) + b"abcd" for kind in range(0x190, 0x194)],
        "database-of-a-guest": [b"\x20\x01/status/x=1", b"\x20\x04/status/", b"\x09\x01/name=x"],
        "dhcp-answers": [b"\2\1\6\0\0\0\0\7" + bytes(8) + b"\xc0\0\2\x4d" + bytes(8) + b"\2\0\0\0\0\3" + bytes(202)
                         + b"\x63\x82\x53\x63\x35\1\5\x36\4\xc0\0\2\1\x33\4\0\0\x0e\x10\1\4\xff\xff\xff\0"
                         b"\3\4\xc0\0\2\1\6\4\xc0\0\2\1\xff",
                         dhcp.datagram(b"body")],
        "dns-messages": [dns.query("a.example.org", dns.A, 7),
                         dns.query("a.example.org", dns.A, 7)[:2] + b"\x81\x80\0\1\0\1\0\0\0\0\1a\7example\3org\0"
                         b"\0\1\0\1\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4\xc0\0\2\1"],
        "updates-requests": [b"GET http://a.org/x?y HTTP/1.1\r\nHost: a.org\r\nConnection: close",
                             b"CONNECT a.org:443 HTTP/1.1\r\nHost: a.org:443"],
        "backups": [backup_header.build("20260101T000000-1", "zstd"), _member("one", b"1"),
                    b"\x3f" + b"".join(archive("a", BytesContent(b"content"), 0)), _STORE],
        "firewall-rules": [b"action=accept proto=tcp dst4=10.0.0.0/8 dstports=80-443 comment=a b\naction=drop\n"],
        "policy-questions": [b"source=work\nintended_target=@default\nservice_and_arg=a+b\njust_evaluate=yes\n\n"],
        "configurations": [b"force-user='root'\nwait-for-session=1\n", b"/a.desktop:Name=x\n"],
        "unpacker": [bytes([0, 0, 3]) + b"abc", bytes([0, 1, 0, 1, 0, 4]) + b"abcd" + bytes([5, 2, 1]) + b"b" + b"\0"],
        "vmexec": [b"ls+--l+-2Fetc"],
    }  # fmt: skip
    return good.get(name, [b"\x10" + bytes(range(64))])
