"""Which constants of the code bound what anybody may ask for; the reference page of limits is written from this."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from operator import attrgetter


@dataclass(frozen=True, slots=True)
class Limit:
    """A number: what it bounds, where it stands, in which unit."""

    what: str
    module: str
    constant: str
    unit: str = ""

    def value(self) -> float:
        """The number as it is in the code now."""
        return float(attrgetter(self.constant)(import_module(f"casemate.{self.module}")))

    def text(self) -> str:
        """The number as a person writes it."""
        value = self.value()
        if self.unit == "bytes":
            for power, word in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
                if value >= 1 << power and value % (1 << power) == 0:
                    return f"{value / (1 << power):g} {word}"
        if self.unit == "seconds" and value >= 3600:
            return f"{value / 3600:g} hours"
        return f"{int(value) if value == int(value) else value} {self.unit}".strip()


LIMITS: dict[str, tuple[Limit, ...]] = {
    "What a qube says of itself": (
        Limit("times at once", "api.guest_calls", "NEWS_BURST", "times"),
        Limit("times in the long run", "api.guest_calls", "NEWS_PER_MINUTE", "times a minute"),
        Limit("features asked for at once", "api.methods.misc", "MAX_REQUESTED", "features"),
        Limit("entries of menus", "wire.menus", "MAX_ENTRIES", "entries"),
        Limit("all entries of menus", "wire.menus", "MAX_TEXT", "bytes"),
        Limit("one entry of menus", "wire.menus", "MAX_ENTRY", "bytes"),
        Limit("file to be opened elsewhere", "agent.open_file", "MAX_BYTES", "bytes"),
        Limit("time without data of one", "agent.open_file", "IDLE_SECONDS", "seconds"),
        Limit("calls that wait for a user's session", "agent.sessions", "MAX_HELD", "calls"),
    ),
    "Channel of a qube": (
        Limit("bytes under way in one direction of one stream", "wire.mux", "WINDOW", "bytes"),
        Limit("streams that one end may have open at once", "wire.mux", "MAX_STREAMS", "streams"),
        Limit("payload of one frame", "wire.mux", "MAX_PAYLOAD", "bytes"),
        Limit("bytes waiting for the channel before its streams must wait", "streams.channel", "HIGH_WATER", "bytes"),
        Limit("violations of the protocol before the channel stays closed", "link.link", "STRIKES"),
        Limit("end of a qube's console that is kept", "link.link", "CONSOLE_BYTES", "bytes"),
        Limit("lines that a link logs", "link.link", "LOG_LINES_PER_SECOND", "a second"),
    ),
    "Calls": (
        Limit("data in one message", "wire.qrexec", "MAX_CHUNK", "bytes"),
        Limit("command line of a call, made by this host", "wire.qrexec", "MAX_COMMAND", "bytes"),
        Limit("service with argument, asked for by a qube", "wire.qrexec", "MAX_CALL", "bytes"),
        Limit("time for the first message of a connection", "streams.listener", "DEADLINE", "seconds"),
        Limit("calls that a qube may ask for, lasting", "link.link", "CALLS_PER_SECOND", "a second"),
        Limit("calls that a qube may ask for, at once", "link.link", "CALL_BURST"),
        Limit("time for a decision, the start of the target in it", "link.link", "BROKER_SECONDS", "seconds"),
        Limit("time from request to connection, all in it", "qrexec.broker", "SETUP_SECONDS", "seconds"),
        Limit("calls that a qube may have open", "qrexec.calls", "OPEN_OF_ONE"),
        Limit("calls that all qubes may have open", "qrexec.calls", "OPEN_OF_ALL"),
        Limit("questions to the user that one qube's calls may wait for", "qrexec.ask", "PENDING_OF_ONE"),
        Limit("time for an answer of the user, that in the queue in it", "qrexec.ask", "ASK_SECONDS", "seconds"),
        Limit("depth of includes in the policy", "qrexec.parser", "MAX_DEPTH"),
        Limit("rules of the policy", "qrexec.parser", "MAX_RULES"),
        Limit("size of a file of the policy", "qrexec.files", "MAX_SIZE", "bytes"),
    ),
    "QubesDB": (
        Limit("path", "wire.qdb", "MAX_PATH", "characters"),
        Limit("value", "wire.qdb", "MAX_DATA", "bytes"),
        Limit("entries that a qube may have written", "qdb.tree", "GUEST_KEYS"),
        Limit("bytes that a qube may have written, paths too", "qdb.tree", "GUEST_BYTES", "bytes"),
        Limit("entries of the host in a qube's database", "qdb.tree", "HOST_KEYS"),
        Limit("writes of a qube, lasting", "qdb.session", "GUEST_RATE", "a second"),
        Limit("writes of a qube, at once", "qdb.session", "GUEST_BURST"),
        Limit("watches of one connection", "qdb.session", "MAX_WATCHES"),
        Limit("connections to one database", "qdb.server", "MAX_CLIENTS"),
        Limit("output waiting before a connection is closed", "qdb.session", "MAX_OUTPUT", "bytes"),
    ),
    "File copy": (
        Limit("files in one copy", "filecopy.unpack", "MAX_FILES"),
        Limit("bytes in one copy", "filecopy.unpack", "MAX_BYTES", "bytes"),
        Limit("depth of directories", "wire.qfile", "MAX_DEPTH"),
        Limit("name in a directory", "wire.qfile", "MAX_COMPONENT", "bytes"),
        Limit("whole name, with its NUL", "wire.qfile", "MAX_NAME", "bytes"),
        Limit("receiver: time without data", "filecopy.unpack", "IDLE_SECONDS", "seconds"),
        Limit("sender: time without a sign of the receiver", "filecopy.pack", "PATIENCE", "seconds"),
        Limit("room that stays free on the receiver's disk", "filecopy.unpack", "SPARE", "bytes"),
    ),
    "Admin API": (
        Limit("one request, but for a few methods that take long texts", "wire.admin", "MAX_REQUEST", "bytes"),
        Limit("argument of a method", "wire.admin", "MAX_ARGUMENT", "characters"),
        Limit("time to send a request and to fetch its reply", "api.server", "REQUEST_SECONDS", "seconds"),
        Limit("connections at once", "api.server", "MAX_CONNECTIONS"),
        Limit("subscribers of events", "api.events", "MAX_SUBSCRIPTIONS"),
        Limit("subscriptions of one qube", "api.events", "MAX_OF_ONE_QUBE"),
        Limit("calls of one qube under way", "api.guest_calls", "CALLS_OF_ONE_QUBE"),
        Limit("block devices that a qube may say it offers", "api.methods.devices", "MAX_OFFERED", "devices"),
        Limit("devices assigned to a qube", "model.devices", "MAX_ASSIGNMENTS", "devices"),
        Limit("devices that a running qube can have", "host.domain_xml_qemu", "HOTPLUG_PORTS", "devices"),
        Limit("notes about a qube", "engine.qube_files", "MAX_NOTES", "bytes"),
        Limit("firewall rules of a qube", "wire.firewall", "MAX_RULES"),
        Limit("file of the policy, when replaced", "api.methods.policy", "MAX_TEXT", "bytes"),
        Limit("image that is put into a volume", "api.imports", "MAX_IMAGE", "bytes"),
        Limit("events waiting for one subscriber before it is cut off", "api.events", "QUEUE_LIMIT"),
        Limit("part of an event", "wire.admin", "MAX_TOKEN", "bytes"),
        Limit("tokens of volumes to clone", "api.context", "CloneTokens.LIMIT"),
    ),
    "Names": (
        Limit("qube", "wire.names", "_QUBE.high", "characters"),
        Limit("service", "wire.names", "_SERVICE.high", "characters"),
        Limit("argument of a service", "wire.names", "_ARGUMENT.high", "characters"),
        Limit("feature", "wire.names", "_FEATURE.high", "characters"),
        Limit("tag", "wire.names", "_TAG.high", "characters"),
        Limit("label", "wire.names", "_LABEL.high", "characters"),
        Limit("pool", "wire.names", "_POOL.high", "characters"),
        Limit("user in a qube", "wire.names", "_USER.high", "characters"),
    ),
    "Store": (
        Limit("size of `qubes.xml`", "store.document", "MAX_SIZE", "bytes"),
        Limit("depth of its elements", "store.document", "MAX_DEPTH"),
        Limit("wait for the lock, unless told otherwise", "store.lock", "DEFAULT_TIMEOUT", "seconds"),
        Limit("features of a qube", "model.features", "MAX_FEATURES"),
        Limit("value of a feature", "model.features", "MAX_VALUE", "bytes"),
        Limit("tags of a qube", "model.tags", "MAX_TAGS"),
        Limit("numbers of disposables", "engine.disposables", "DISPOSABLE_NAMES"),
        Limit("time until a disposable's name is used again", "engine.disposables", "QUARANTINE_SECONDS", "seconds"),
    ),
}  # fmt: skip
"""What the page shows, by section."""
