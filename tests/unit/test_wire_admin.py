"""The Admin API's bytes: golden frames, whatever way they are cut, and garbage that must not pass."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.wire import admin
from casemate.wire.errors import (
    CasemateError,
    DaemonAccessError,
    FeatureNotFoundError,
    LockTimeoutError,
    NotFoundError,
    PermissionDeniedError,
    ProtocolError,
    StartError,
    all_errors,
)

GOLDEN = b"admin.vm.property.Set+memory dom0 name work\x00500"

names = st.from_regex(r"[a-zA-Z][a-zA-Z0-9_-]{0,30}", fullmatch=True)
arguments = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=40)
texts = st.text(st.characters(min_codepoint=1, max_codepoint=0xFFFF, exclude_categories=["Cs"]), max_size=60)


def test_golden_request() -> None:
    assert admin.build_request("admin.vm.property.Set", "memory", "work", b"500") == GOLDEN
    assert admin.parse_request(GOLDEN) == ("admin.vm.property.Set", "memory", "dom0", "work", b"500")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"admin.vm.List dom0 name dom0\0", ("admin.vm.List", "", "dom0", "dom0", b"")),
        (b"admin.vm.List+ dom0 keyword adminvm\0", ("admin.vm.List", "", "dom0", "dom0", b"")),
        (b"a+b+c dom0 name w\0x\0y", ("a", "b+c", "dom0", "w", b"x\0y")),
        (
            b"a+ uuid:8cbd8f3c-2c5b-4e3b-9d6a-000000000003 name uuid:8cbd8f3c-2c5b-4e3b-9d6a-000000000004\0",
            ("a", "", "uuid:8cbd8f3c-2c5b-4e3b-9d6a-000000000003", "uuid:8cbd8f3c-2c5b-4e3b-9d6a-000000000004", b""),
        ),
    ],
)
def test_accepted_forms(data: bytes, expected: tuple[object, ...]) -> None:
    assert admin.parse_request(data) == expected


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\0", b"a", b"a+ dom0 name dom0", b"a+b c dom0 name w\0", b"a+ dom0 name\0", b"a+ dom0 name \0",
        b"a+ dom0 keyword other\0", b"a+ dom0 thing w\0", b"a+ dom0 name w x\0", b"a+ dom0 name -w\0",
        b"a+ dom0 name w\n\0", b"a+ dom0 name uuid:1\0", b"+x dom0 name w\0", b"a+\x01 dom0 name w\0",
        "a+ dom0 name é\0".encode(), b"a+" + b"x" * 1025 + b" dom0 name w\0", b"a/b+ dom0 name w\0",
    ],
)  # fmt: skip
def test_refused_requests(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        admin.parse_request(data)


def test_the_limit_is_exact() -> None:
    head = b"admin.vm.feature.Set+ dom0 name work\0"
    full = head + b"x" * (admin.MAX_REQUEST - len(head))
    reader = admin.RequestReader()
    reader.feed(full)
    assert len(reader.finish().payload) == admin.MAX_REQUEST - len(head)
    with pytest.raises(ProtocolError):
        reader.feed(b"x")
    with pytest.raises(ProtocolError):
        admin.parse_request(full + b"x")


@given(names, arguments, names, st.binary(max_size=200), st.data())
def test_requests_survive_any_cut(method: str, arg: str, dest: str, payload: bytes, data: st.DataObject) -> None:
    raw = admin.build_request(method.replace("_", "."), arg, dest, payload)
    reader = admin.RequestReader()
    while raw:
        size = data.draw(st.integers(1, len(raw)))
        reader.feed(raw[:size])
        raw = raw[size:]
    assert reader.finish() == (method.replace("_", "."), arg, "dom0", dest, payload)


@given(st.binary(max_size=300))
def test_garbage_raises_nothing_but_our_errors(data: bytes) -> None:
    for parse in (admin.parse_request, admin.parse_reply):
        try:
            parse(data)
        except CasemateError:
            pass
    try:
        list(admin.EventReader().feed(data))
    except CasemateError:
        pass


def test_golden_replies() -> None:
    assert admin.success("ok") == b"0\0ok" and admin.parse_reply(b"0\0") == b""
    assert admin.failure(NotFoundError("no%pe")) == b"2\0QubesVMNotFoundError\0\0No such qube: 'no%%pe'\0"
    assert admin.failure(ProtocolError("100%s")) == b"2\0ProtocolError\0\x00100%s\0"
    assert admin.failure(PermissionDeniedError()) == b"2\0PermissionDenied\0\0Permission denied\0"


@pytest.mark.parametrize("data", [b"", b"x", b"2\0A\0\0", b"2\0A\0\0text", b"3\0", b"0", b"2\0"])
def test_broken_replies(data: bytes) -> None:
    with pytest.raises(DaemonAccessError):
        admin.parse_reply(data)


@given(st.sampled_from(all_errors()), texts)
def test_every_error_arrives_with_its_text(cls: type[CasemateError], text: str) -> None:
    error = cls.__new__(cls)
    CasemateError.__init__(error, text)
    with pytest.raises(CasemateError) as caught:
        admin.parse_reply(admin.failure(error))
    assert str(caught.value) == text
    assert caught.value.wire_name == cls.wire_name and isinstance(error, type(caught.value))


def test_error_classes_on_the_wire() -> None:
    for error, kind in ((FeatureNotFoundError("x"), FeatureNotFoundError), (LockTimeoutError("x"), CasemateError)):
        with pytest.raises(kind):
            admin.parse_reply(admin.failure(error))
    assert type(admin.error_of("QubesSomethingNew", "a %s of %d", ["b", "7"])) is CasemateError
    assert str(admin.error_of("QubesSomethingNew", "a %s of %d", ["b", "7"])) == "a b of 7"
    assert str(admin.error_of("QubesVMError", "broken %", [])) == "broken %"
    assert admin.failure(StartError("a\0b")).count(b"\0") == 4


def test_golden_events() -> None:
    details = {"name": "memory", "newvalue": "601", "oldvalue": "400"}
    frame = b"1\0work-0001\0property-set:memory\0name\0memory\0newvalue\x00601\0oldvalue\x00400\0\0"
    assert admin.build_event("work-0001", "property-set:memory", details) == frame
    assert admin.build_event("", "domain-add", {"vm": "evt1"}) == b"1\0\0domain-add\0vm\0evt1\0\0"
    assert admin.build_event("", admin.CONNECTED) == b"1\0\0connection-established\0\0"
    assert list(admin.EventReader().feed(frame)) == [("work-0001", "property-set:memory", details)]


@given(
    st.lists(
        st.tuples(
            names | st.just(""),
            arguments.filter(bool),
            st.dictionaries(arguments.filter(bool), texts, max_size=4),
        ),
        max_size=5,
    )
)
def test_events_survive_bytewise_arrival(events: list[tuple[str, str, dict[str, str]]]) -> None:
    raw = b"".join(admin.build_event(*event) for event in events)
    reader = admin.EventReader()
    found = [event for position in range(len(raw)) for event in reader.feed(raw[position : position + 1])]
    assert [tuple(event) for event in found] == events
    if events:
        reader.finish()


def test_refused_events() -> None:
    for subject, name, details in (("a", "", {}), ("a", "b", {"": "x"}), ("a", "b", {"k": "x\0"}), ("a\0", "b", {})):
        with pytest.raises(ProtocolError):
            admin.build_event(subject, name, details)
    with pytest.raises(ProtocolError):
        admin.build_event("a", "b", {"k": "x" * 65536})


def test_a_subscription_that_is_refused_or_cut_off() -> None:
    reader = admin.EventReader()
    assert list(reader.feed(admin.failure(PermissionDeniedError()))) == []
    with pytest.raises(PermissionDeniedError):
        reader.finish()
    reader = admin.EventReader()
    assert len(list(reader.feed(admin.build_event("", "x") + b"1\0half"))) == 1
    with pytest.raises(DaemonAccessError):
        reader.finish()
    with pytest.raises(DaemonAccessError):
        list(admin.EventReader().feed(b"1\0\0" + b"x" * 70000))


@given(st.dictionaries(names, st.tuples(st.booleans() | st.none(), st.sampled_from(["str", "vm"]), texts), max_size=5))
def test_properties_round_trip(values: dict[str, tuple[bool | None, str, str]]) -> None:
    wrapped = {name: admin.PropertyValue(*value) for name, value in values.items()}
    content = admin.build_properties(wrapped)
    assert admin.parse_properties(content) == wrapped
    assert content.count("\n") == len(wrapped)


def test_golden_properties() -> None:
    assert admin.build_property(admin.PropertyValue(True, "int", "")) == "default=True type=int "
    assert admin.build_property(admin.PropertyValue(None, "vm", "net")) == "type=vm net"
    value = admin.PropertyValue(False, "str", "a\\b\nc")
    assert admin.build_properties({"x": value}) == "x default=False type=str a\\\\b\\nc\n"
    with pytest.raises(DaemonAccessError):
        admin.parse_property("nothing")


def test_lists_tolerate_further_fields() -> None:
    qube = admin.ListedQube("work", "AppVM", "Halted", "0-1")
    assert admin.build_list([qube]) == "work class=AppVM state=Halted uuid=0-1\n"
    assert admin.parse_list("work class=AppVM extra=1 state=Halted uuid=0-1\n") == [qube]
