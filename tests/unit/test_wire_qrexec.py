"""The qrexec codec: every boundary, any cut of the stream, nothing in the wrong direction."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.wire import call_data, qrexec, vmexec
from casemate.wire.errors import CallRefusedError, CasemateError, ProtocolError, ValueInvalidError
from casemate.wire.framing import MessageReader

IDENT = b"SOCKET5".ljust(32, b"\0")


def cuts(data: bytes, sizes: list[int]) -> list[bytes]:
    """The stream in pieces of these sizes, over and over."""
    out, at, i = [], 0, 0
    while at < len(data):
        step = sizes[i % len(sizes)]
        out.append(data[at : at + step])
        at += step
        i += 1
    return out


def joined(side: call_data.CallerSide | call_data.ServiceSide, pieces: list[bytes]) -> list[tuple[int, bytes]]:
    """Events with neighbouring data of one kind put together; an end is data of length 0."""
    out: list[tuple[int, bytes]] = []
    for piece in pieces:
        for kind, view in side.feed(piece):
            if view and out and out[-1][0] == kind and out[-1][1]:
                out[-1] = (kind, out[-1][1] + bytes(view))
            else:
                out.append((kind, bytes(view)))
    return out


sizes = st.lists(st.integers(1, 70000), min_size=1, max_size=5)
chunks = st.lists(
    st.tuples(st.sampled_from([qrexec.DATA_STDOUT, qrexec.DATA_STDERR]), st.binary(min_size=1, max_size=300)),
    max_size=12,
)


@given(chunks, st.integers(0, 255), st.one_of(sizes, st.just([1])))
def test_what_a_service_sends_arrives_however_it_is_cut(
    data: list[tuple[int, bytes]], code: int, step: list[int]
) -> None:
    service, caller = call_data.ServiceSide(), call_data.CallerSide()
    wire = b"".join(b"".join(service.output(kind, chunk)) for kind, chunk in data) + b"".join(service.exit(code))
    events = joined(caller, cuts(wire, step))
    for kind in (qrexec.DATA_STDOUT, qrexec.DATA_STDERR):
        assert b"".join(d for k, d in events if k == kind) == b"".join(d for k, d in data if k == kind)
        assert events.count((kind, b"")) == 1
    assert events[-1] == (qrexec.DATA_EXIT_CODE, b"")
    assert caller.status() == code
    assert service.finished
    assert service.exit(1) == service.eof(qrexec.DATA_STDOUT) == service.output(qrexec.DATA_STDOUT, b"x") == []


@given(st.lists(st.binary(min_size=1, max_size=300), max_size=12), st.one_of(sizes, st.just([1])))
def test_stdin_arrives_however_it_is_cut(data: list[bytes], step: list[int]) -> None:
    caller, service = call_data.CallerSide(), call_data.ServiceSide()
    wire = b"".join(b"".join(caller.stdin(chunk)) for chunk in data) + b"".join(caller.stdin_eof())
    assert caller.stdin_eof() == caller.stdin(b"late") == []
    events = joined(service, cuts(wire, step))
    assert b"".join(d for _, d in events) == b"".join(data)
    assert events[-1] == (qrexec.DATA_STDIN, b"")


@pytest.mark.parametrize("size", [0, 1, 65535, 65536, 65537, 131072, 131073])
def test_data_is_sent_in_allowed_chunks(size: int) -> None:
    parts = call_data.CallerSide().stdin(bytes(size))
    assert b"".join(parts[1::2]) == bytes(size)
    assert all(qrexec.HEADER.unpack(h) == (qrexec.DATA_STDIN, len(d)) for h, d in zip(parts[::2], parts[1::2]))
    assert all(len(d) <= 65536 for d in parts[1::2])
    events = joined(call_data.ServiceSide(), [b"".join(parts)])
    assert sum(len(d) for _, d in events) == size


def test_a_chunk_beyond_the_limit_is_refused_by_its_header() -> None:
    with pytest.raises(ProtocolError):
        call_data.CallerSide().feed(qrexec.HEADER.pack(qrexec.DATA_STDOUT, 65537))
    with pytest.raises(ProtocolError):
        call_data.ServiceSide().feed(qrexec.HEADER.pack(qrexec.DATA_STDIN, 2**32 - 1))


DATA_KINDS = [qrexec.DATA_STDIN, qrexec.DATA_STDOUT, qrexec.DATA_STDERR, qrexec.DATA_EXIT_CODE]


@pytest.mark.parametrize("kind", [*DATA_KINDS, 0, 0x194, 0x200, 0x213, 0x300, 0xFFFFFFFF])
def test_each_direction_takes_its_own_types_only(kind: int) -> None:
    wire = qrexec.HEADER.pack(kind, 4) + b"\0\0\0\0"
    for side, allowed in (
        (call_data.CallerSide(), DATA_KINDS[1:]),
        (call_data.ServiceSide(), DATA_KINDS[:1]),
    ):
        if kind in allowed:
            assert side.feed(wire)
        else:
            with pytest.raises(ProtocolError):
                side.feed(wire)


@pytest.mark.parametrize("length", [0, 1, 3, 5, 8, 2**31])
def test_an_exit_code_has_four_bytes(length: int) -> None:
    with pytest.raises(ProtocolError):
        call_data.CallerSide().feed(qrexec.HEADER.pack(qrexec.DATA_EXIT_CODE, length))


@pytest.mark.parametrize(("raw", "status"), [(0, 0), (255, 255), (256, 255), (-1, 255), (2**31 - 1, 255), (137, 137)])
def test_an_exit_code_out_of_range_is_never_success(raw: int, status: int) -> None:
    caller = call_data.CallerSide()
    caller.feed(qrexec.HEADER.pack(qrexec.DATA_EXIT_CODE, 4) + struct.pack("<i", raw))
    assert caller.status() == status


def test_nothing_comes_after_the_exit_code() -> None:
    for late in (b"x", qrexec.HEADER.pack(qrexec.DATA_STDOUT, 0), b"".join(call_data.ServiceSide().exit(0))):
        caller = call_data.CallerSide()
        with pytest.raises(ProtocolError):
            caller.feed(b"".join(call_data.ServiceSide().exit(3)) + late)
        caller = call_data.CallerSide()
        caller.feed(b"".join(call_data.ServiceSide().exit(3)))
        assert caller.stdin(b"x") == caller.stdin_eof() == []
        with pytest.raises(ProtocolError):
            caller.feed(late)


@pytest.mark.parametrize("kind", [qrexec.DATA_STDOUT, qrexec.DATA_STDERR])
def test_nothing_comes_after_the_end_of_a_stream(kind: int) -> None:
    for late in (0, 5):
        caller = call_data.CallerSide()
        caller.feed(qrexec.HEADER.pack(kind, 0))
        with pytest.raises(ProtocolError):
            caller.feed(qrexec.HEADER.pack(kind, late))


def test_a_peer_that_vanishes_is_255() -> None:
    caller = call_data.CallerSide()
    caller.feed(qrexec.message(qrexec.DATA_STDOUT, b"half"))
    assert caller.status() == 255


@given(st.binary(max_size=400), sizes)
def test_garbage_never_gets_further_than_a_protocol_error(garbage: bytes, step: list[int]) -> None:
    for side in (call_data.CallerSide(), call_data.ServiceSide()):
        try:
            for piece in cuts(garbage, step):
                side.feed(piece)
        except ProtocolError:
            pass
    for table in (qrexec.HOST_REQUESTS, qrexec.GUEST_REQUESTS, qrexec.ANSWERS):
        reader = MessageReader(qrexec.HEADER, table)
        try:
            for piece in cuts(garbage, step):
                reader.feed(piece)
                while reader.next() is not None:
                    pass
        except ProtocolError:
            pass
    for parse in (qrexec.parse_exec, qrexec.parse_trigger4):
        try:
            parse(garbage)
        except CasemateError:
            pass


# -- requests

names = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z")
arguments = st.none() | st.from_regex(r"\A[A-Za-z0-9._@+:-]{0,255}\Z")
qubes = st.from_regex(r"\A[a-zA-Z][a-zA-Z0-9_-]{0,30}\Z")


@given(names, arguments, qubes, st.sampled_from(["DEFAULT", "root", "user"]), st.sampled_from(["", "name", "keyword"]))
def test_a_command_survives_the_wire(service: str, argument: str | None, source: str, user: str, kind: str) -> None:
    target = {"": "", "name": "work", "keyword": "dispvm:tpl"}[kind]
    sent = qrexec.Command(user, service, argument, source, kind, target)
    reader = MessageReader(qrexec.HEADER, qrexec.HOST_REQUESTS)
    found = None
    for byte in qrexec.exec_message(sent.cmdline()):
        reader.feed(bytes([byte]))
        found = reader.next()
    assert found is not None and not reader.partial
    got = qrexec.parse_command(qrexec.parse_exec(found[1]))
    assert [getattr(got, f) for f in qrexec.Command.__slots__] == [getattr(sent, f) for f in qrexec.Command.__slots__]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "user",
        "user:",
        "user:ls",
        "user:QUBESRPC",
        "user:QUBESRPC svc",
        "user:QUBESRPC svc ",
        "user:QUBESRPC  svc dom0",
        "user:QUBESRPC svc  dom0",
        "user:QUBESRPC svc dom0 ",
        "user:QUBESRPCX svc dom0",
        "user: QUBESRPC svc dom0",
        "user:QUBESRPC +arg dom0",
        "user:QUBESRPC svc+a/b dom0",
        "user:QUBESRPC svc+a$b dom0",
        "user:QUBESRPC svc dom0 name",
        "user:QUBESRPC svc dom0 nam work",
        "user:QUBESRPC svc dom0 namex work",
        "user:QUBESRPC svc dom0 name @dispvm",
        "user:QUBESRPC svc dom0 keyword anyvm",
        "user:QUBESRPC svc dom0 keyword dispvm:",
        "user:QUBESRPC svc dom0 name work more",
        "-r:QUBESRPC svc dom0",
        "Root:QUBESRPC svc dom0",
        ":QUBESRPC svc dom0",
        "user:QUBESRPC svc dom0\n",
        "user:QUBESRPC svc\tdom0",
        "user:QUBESRPC svc \u0430bc",
        "user:QUBESRPC s\u00e9 dom0",
    ],
)
def test_a_command_line_off_the_grammar_is_refused(text: str) -> None:
    with pytest.raises(ValueInvalidError):
        qrexec.parse_command(text)


def test_a_command_may_have_a_long_argument_a_request_may_not() -> None:
    long = "a" * 5000
    assert qrexec.parse_command(f"DEFAULT:QUBESRPC qubes.VMExec+{long} dom0").argument == long
    with pytest.raises(ValueInvalidError):
        qrexec.parse_call("svc+" + "a" * 256)
    assert qrexec.parse_call("svc+" + "a" * 255) == ("svc", "a" * 255)
    assert qrexec.parse_call("svc+") == ("svc", "")
    assert qrexec.parse_call("svc") == ("svc", None)


@pytest.mark.parametrize(
    ("body", "good"),
    [
        (b"", False),
        (bytes(8), False),
        (bytes(8) + b"\0", False),
        (bytes(8) + b"x", False),
        (bytes(8) + b"x\0", True),
        (bytes(8) + b"x\0y\0", False),
        (bytes(8) + b"x\0\0", False),
        (bytes(8) + b"\xff\0", False),
        (bytes(8) + b"x" * 64999 + b"\0", True),
        (bytes(8) + b"x" * 65000 + b"\0", False),
    ],
)
def test_exec_parameters_have_one_nul_at_the_end(body: bytes, good: bool) -> None:
    if good:
        assert qrexec.parse_exec(body) == body[8:-1].decode()
    else:
        with pytest.raises(ProtocolError):
            qrexec.parse_exec(body)


@pytest.mark.parametrize(
    ("kind", "length"),
    [
        (qrexec.EXEC_CMDLINE, 9),
        (qrexec.EXEC_CMDLINE, 65009),
        (qrexec.JUST_EXEC, 0),
        (qrexec.TRIGGER_SERVICE4, 200),
        (qrexec.HELLO, 4),
        (qrexec.DATA_STDIN, 1),
    ],
)
def test_a_request_is_judged_by_its_header(kind: int, length: int) -> None:
    reader = MessageReader(qrexec.HEADER, qrexec.HOST_REQUESTS)
    reader.feed(qrexec.HEADER.pack(kind, length))
    with pytest.raises(ProtocolError):
        reader.next()


@given(names, arguments, st.sampled_from(["", "work", "@dispvm", "@dispvm:tpl", "$adminvm", "dom0"]))
def test_a_request_survives_the_wire(service: str, argument: str | None, target: str) -> None:
    call = service if argument is None else f"{service}+{argument}"
    body = qrexec.trigger4(target, call, source="lies")[8:]
    trigger = qrexec.parse_trigger4(body)
    assert (trigger.service, trigger.argument, trigger.call) == (service, argument, call)
    assert trigger.target == (target.replace("$", "@") or "@default")
    assert trigger.ident == b"SOCKET".ljust(32, b"\0") == qrexec.trigger_ident(body)


def trigger_body(
    target: bytes = b"work".ljust(64, b"\0"),
    ident: bytes = IDENT,
    call: bytes = b"svc+a\0",
    source: bytes = bytes(64),
) -> bytes:
    return source + target + ident + call


@pytest.mark.parametrize(
    "body",
    [
        trigger_body(call=b"\0\0"),
        trigger_body(call=b"+\0"),
        trigger_body(call=b"+a\0"),
        trigger_body(call=b"a"),
        trigger_body(call=b"a\0b\0"),
        trigger_body(call=b"a/b\0"),
        trigger_body(call=b"a b\0"),
        trigger_body(call=b"a+$HOME\0"),
        trigger_body(call=b"a+`id`\0"),
        trigger_body(call=b"a+x;y\0"),
        trigger_body(call=b"a+%s*~&\0"),
        trigger_body(call=b"a+\n\0"),
        trigger_body(call=b"a\xff\0"),
        trigger_body(call=b"a" * 64 + b"\0"),
        trigger_body(call=b"a+" + b"b" * 256 + b"\0"),
        trigger_body(ident=b"a/b".ljust(32, b"\0")),
        trigger_body(ident=b"a" * 32),
        trigger_body(ident=b"a\0b".ljust(32, b"\0")),
        trigger_body(target=b"w" * 64),
        trigger_body(target=b"work\0x".ljust(64, b"\0")),
        trigger_body(target=b"@anyvm".ljust(64, b"\0")),
        trigger_body(target=b"@tag:x".ljust(64, b"\0")),
        trigger_body(target=b"@dispvm:@tag:x".ljust(64, b"\0")),
        trigger_body(target=b"uuid:1234".ljust(64, b"\0")),
        trigger_body(target=b"w\xc3\xa9".ljust(64, b"\0")),
        trigger_body(target=b"-w".ljust(64, b"\0")),
        trigger_body(source=b"s" * 64),
    ],
)
def test_a_bad_name_in_a_request_is_a_refusal_and_nothing_is_rewritten(body: bytes) -> None:
    with pytest.raises(ValueInvalidError):
        qrexec.parse_trigger4(body)
    assert qrexec.trigger_ident(body) == body[128:160]


@pytest.mark.parametrize("body", [b"", bytes(159), bytes(160 + 513)])
def test_a_request_of_a_wrong_length_is_a_violation(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        qrexec.trigger_ident(body)
    with pytest.raises(ProtocolError):
        qrexec.parse_trigger4(body)


def test_answers() -> None:
    reader = MessageReader(qrexec.HEADER, qrexec.ANSWERS)
    reader.feed(qrexec.service_connect(IDENT) + qrexec.service_refused(IDENT) + b"rest")
    found = reader.next()
    assert found is not None
    qrexec.check_answer(found[0][0], found[1])
    found = reader.next()
    assert found is not None
    with pytest.raises(CallRefusedError) as info:
        qrexec.check_answer(found[0][0], found[1])
    assert info.value.exit_status == 126
    assert reader.rest() == b"rest" and reader.rest() == b""
    with pytest.raises(ProtocolError):
        qrexec.check_answer(qrexec.EXEC_CMDLINE, b"")


# -- VMExec


@given(st.lists(st.binary(max_size=20).filter(lambda b: b"\0" not in b), min_size=1, max_size=5))
def test_vmexec_round_trip(words: list[bytes]) -> None:
    encoded = vmexec.encode_vmexec(words)
    assert set(encoded) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._+-")
    assert vmexec.decode_vmexec(encoded) == words


def test_vmexec_known_forms() -> None:
    assert vmexec.encode_vmexec(["ls", "-la", "/tmp/x y"]) == "ls+--la+-2Ftmp-2Fx-20y"
    assert vmexec.encode_vmexec(["\u00e9"]) == "-C3-A9"
    assert vmexec.decode_vmexec("a--2D") == [b"a-2D"]
    assert vmexec.decode_vmexec("---41") == [b"-A"]
    assert vmexec.decode_vmexec("") == [b""]


@pytest.mark.parametrize(
    "text", ["-", "a-", "-4", "-4g", "-fF", "-ff", "a b", "a/b", "-00", "a:b", "a@b", "\u00e9", "--- "]
)
def test_vmexec_refuses_what_nobody_encodes(text: str) -> None:
    with pytest.raises(ValueInvalidError):
        vmexec.decode_vmexec(text)


def test_vmexec_needs_a_command() -> None:
    with pytest.raises(ValueInvalidError):
        vmexec.encode_vmexec([])
