"""Which program serves a call: lookup by name and argument, its configuration, what it is told. Fails closed."""

from __future__ import annotations

import os
import stat
import sys
import time

from casemate.wire.errors import CallRefusedError, CasemateError, printable
from casemate.wire.names import number, user_name
from casemate.wire.qrexec import EXIT_FAILED, EXIT_NO_SERVICE, Command
from casemate.wire.vmexec import decode_vmexec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

SERVICE_PATH = "/run/qubes-rpc:/usr/local/etc/qubes-rpc:/etc/qubes-rpc"
CONFIG_PATH = "/run/qubes/rpc-config:/usr/local/etc/qubes/rpc-config:/etc/qubes/rpc-config"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
NAME_MAX = 255
MAX_CONFIG = 65536
_TCP = "/dev/tcp"


class NoServiceError(CallRefusedError):
    """The call was allowed, but there is no such service here."""

    exit_status = EXIT_NO_SERVICE


class ServiceError(CasemateError):
    """The service is there and cannot be used: bad configuration, not executable, unreadable."""

    exit_status = EXIT_FAILED


def failure_status(error: Exception) -> int:
    """The exit status that a caller is told for a call that cannot be served: 127 where there is no such service, else
    125. The exit statuses of other errors are for tools of the host, and mean other things there."""
    return EXIT_NO_SERVICE if isinstance(error, NoServiceError) else EXIT_FAILED


class Config:
    """A service's configuration file; every key has its default. The attributes are the keys of ``parse_config``."""

    __slots__ = ("exit_on_client_eof", "exit_on_service_eof", "force_user", "skip_descriptor", "wait_for_session")

    def __init__(self) -> None:
        self.wait_for_session = False
        self.force_user = ""
        self.skip_descriptor = False
        self.exit_on_service_eof = False
        self.exit_on_client_eof = False

    def of_a_program(self, service: str, log: Callable[[str], None]) -> None:
        """Forget what only says something of a socket, as upstream does, with a line in the log."""
        for key in _SOCKET_KEYS:
            if getattr(self, _FLAGS[key]):
                log(f"{service}: {key} is ignored, the service is a program")
                setattr(self, _FLAGS[key], False)


_FLAGS = {
    "wait-for-session": "wait_for_session",
    "skip-service-descriptor": "skip_descriptor",
    "exit-on-service-eof": "exit_on_service_eof",
    "exit-on-client-eof": "exit_on_client_eof",
}
"""Keys of a configuration that are true or false, and the attribute of each."""
_SOCKET_KEYS = ("skip-service-descriptor", "exit-on-service-eof", "exit-on-client-eof")


class Service:
    """What to run for a call.

    ``kind`` is ``exec``, ``socket`` or ``tcp``. ``argv`` can always be executed: for the other two it is the agent's
    own connector. ``user`` is the account to run as.
    """

    __slots__ = ("argv", "config", "environment", "kind", "path", "user")

    def __init__(
        self, kind: str, path: str, argv: Sequence[str], environment: Mapping[str, str], user: str, config: Config
    ) -> None:
        self.kind = kind
        self.path = path
        self.argv = list(argv)
        self.environment = environment
        self.user = user
        self.config = config


def _log(text: str) -> None:
    """A line on stderr, which is the log of an agent and of a daemon."""
    try:
        os.write(2, f"{printable(text, 400)}\n".encode("ascii", "backslashreplace"))
    except OSError:
        pass  # nobody reads it


def find_service(
    command: Command,
    default_user: str,
    environ: Mapping[str, str] = os.environ,
    log: Callable[[str], None] = _log,
) -> Service:
    """What serves the call; NoServiceError (127) when nothing does, ServiceError (125) when it cannot be used.

    ``log`` gets a line for what is ignored in the service's configuration.
    """
    found = _lookup(command, environ.get("QREXEC_SERVICE_PATH") or SERVICE_PATH)
    if found is None:
        raise NoServiceError(f"{command.service}: no such service in this qube")
    path, kind = found
    config = _configuration(command, environ.get("QUBES_RPC_CONFIG_PATH") or CONFIG_PATH, log)
    user = config.force_user or (default_user if command.user == "DEFAULT" else command.user)
    if kind == "exec":
        config.of_a_program(command.service, log)
        argv = _builtin(path, command) or [path, *([command.argument] if command.argument else [])]
    else:
        target = path if kind == "socket" else _tcp_target(os.readlink(path), command.argument or "")
        flags = ("s" if config.exit_on_service_eof else "") + ("c" if config.exit_on_client_eof else "")
        descriptor = "" if config.skip_descriptor else command.descriptor
        argv = [*own_tool("service-connect"), kind, target, flags, descriptor]
    return Service(kind, path, argv, _environment(command, environ), user, config)


_MARK = b"\n# casemate: builtin "
_MARK_WITHIN = 128


def _builtin(path: str, command: Command) -> list[str]:
    """What to execute instead of a service's file that says so in its second line; empty when it does not."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            mark = os.read(fd, _MARK_WITHIN).partition(_MARK)[2].partition(b"\n")[0]
        finally:
            os.close(fd)
    except OSError as error:
        raise ServiceError(f"{path}: {error.strerror}") from error
    if mark == b"shell":
        return ["/bin/bash" if os.access("/bin/bash", os.X_OK) else "/bin/sh"]
    if mark != b"vmexec":
        return []
    try:
        words = [word.decode("utf-8", "surrogateescape") for word in decode_vmexec(command.argument or "")]
    except CasemateError as error:
        raise ServiceError(str(error)) from None
    if "/" in words[0]:
        return words
    for directory in PATH.split(":"):
        if os.access(f"{directory}/{words[0]}", os.X_OK):
            return [f"{directory}/{words[0]}", *words[1:]]
    return _missing(words[0])


def _missing(program: str) -> list[str]:
    raise NoServiceError(f"{printable(program, 80)}: not found")


def own_tool(name: str) -> list[str]:
    """Command that runs one of the agent's tools."""
    archive, inside, _ = __file__.partition(".pyz/")
    if inside:
        return [sys.executable, "-I", "-S", archive + ".pyz", name]
    return [sys.executable, "-m", "casemate.agent.entry", name]


def _environment(command: Command, environ: Mapping[str, str]) -> dict[str, str]:
    """Nothing is inherited but where services are; the rest says who calls."""
    keyword = command.target_type == "keyword"
    out = {
        "PATH": PATH,
        "QREXEC_REMOTE_DOMAIN": command.source,
        "QREXEC_SERVICE_FULL_NAME": command.service
        if command.argument is None
        else f"{command.service}+{command.argument}",
        "QREXEC_REQUESTED_TARGET_TYPE": command.target_type,
    }
    if command.argument is not None:
        out["QREXEC_SERVICE_ARGUMENT"] = command.argument
    if command.target_type:
        out["QREXEC_REQUESTED_TARGET_KEYWORD" if keyword else "QREXEC_REQUESTED_TARGET"] = command.target
    if "QREXEC_SERVICE_PATH" in environ:
        out["QREXEC_SERVICE_PATH"] = environ["QREXEC_SERVICE_PATH"]
    return out


def _candidates(command: Command, search: str) -> list[str]:
    names = [command.full_name, command.service]
    if len(command.full_name) > NAME_MAX:
        del names[0]  # no file can have that name
    directories = [directory for directory in search.split(":") if directory]
    present = {directory: _entries(directory) for directory in directories}
    found = []
    for name in names:
        for directory in directories:
            entries = present[directory]
            if entries is None or name in entries:
                found.append(f"{directory}/{name}")
    return found


_SETTLED_NS = 2_000_000_000
_listed: dict[str, tuple[int, frozenset[str]]] = {}


def _entries(directory: str) -> frozenset[str] | None:
    """Names in a directory, known as long as its time of change stays; None when they must be tried one by one."""
    try:
        changed = os.stat(directory).st_mtime_ns
        known = _listed.get(directory)
        if known is not None and known[0] == changed:
            return known[1]
        names = frozenset(os.listdir(directory))
    except FileNotFoundError:
        return frozenset()
    except OSError:
        return None
    if time.time_ns() - changed > _SETTLED_NS:  # a change within the clock's step would not be seen
        _listed[directory] = (changed, names)
    return names


def _lookup(command: Command, search: str) -> tuple[str, str] | None:
    for path in _candidates(command, search):
        try:
            link = stat.S_ISLNK(os.lstat(path).st_mode)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise ServiceError(f"{path}: {error.strerror}") from error
        try:
            if link:
                target = os.readlink(path)
                if target == _TCP or target.startswith(_TCP + "/"):
                    return path, "tcp"
            mode = os.stat(path).st_mode
        except OSError as error:
            raise ServiceError(f"{path}: {error.strerror}") from error
        if stat.S_ISSOCK(mode):
            return path, "socket"
        if stat.S_ISREG(mode) and os.access(path, os.X_OK):
            return path, "exec"
        raise ServiceError(f"{path}: neither a program nor a socket")
    return None


def _tcp_target(link: str, argument: str) -> str:
    """``HOST PORT`` of a link to ``/dev/tcp[/HOST[/PORT]]``; what is missing is taken from the argument."""
    parts = link[len(_TCP) :].split("/")[1:]
    if len(parts) == 2:
        if argument:
            raise ServiceError("this service takes no argument")
    elif len(parts) == 1:
        parts.append(argument)
    elif not parts:
        host, plus, port = argument.rpartition("+")
        if not plus or "_" in argument:
            raise ServiceError("this service wants HOST+PORT as its argument")
        parts = [host.replace("+", ":"), port]
    else:
        raise ServiceError("malformed link to /dev/tcp")
    host, port = parts
    if not host or host.strip("0123456789abcdefABCDEF.:") or not (":" in host or host.count(".") == 3):
        raise ServiceError(f"{printable(host, 80)!r} is not an address")
    try:
        return f"{host} {number(port, 'port', 1, 65535)}"
    except CasemateError as error:
        raise ServiceError(str(error)) from None


# -- configuration


def _configuration(command: Command, search: str, log: Callable[[str], None]) -> Config:
    for path in _candidates(command, search):
        try:
            with open(path, "rb") as file:
                data = file.read(MAX_CONFIG + 1)
        except FileNotFoundError:
            if os.path.islink(path):
                raise ServiceError(f"{path}: dangling link") from None
            continue
        except OSError as error:
            raise ServiceError(f"{path}: {error.strerror}") from error
        if len(data) > MAX_CONFIG:
            raise ServiceError(f"{path}: too long")
        try:
            return parse_config(data, _for_file(log, path))
        except CasemateError as error:
            raise ServiceError(f"{path}: {error}") from None
    return Config()


def _for_file(log: Callable[[str], None], path: str) -> Callable[[str], None]:
    return lambda text: log(f"{path}: {text}")


def parse_config(data: bytes, log: Callable[[str], None] = _log) -> Config:
    """A configuration: lines ``key = value``; values are strings in single quotes, true, false and decimal numbers.

    ``#`` begins a comment, at the start of a line or after a value. A key that nobody knows is ignored with a line in
    the log. What upstream's parser refuses is a ServiceError, because a service that runs otherwise than its owner has
    written down is worse than one that does not run.
    """
    config = Config()
    seen: set[str] = set()
    if b"\0" in data:
        raise ServiceError("there is a NUL in it")
    for count, raw_line in enumerate(data.decode("utf-8", "surrogateescape").split("\n"), 1):
        line = raw_line.removesuffix("\r")
        if not line.strip(" \t") or line.startswith("#"):
            continue
        key, equals, raw = line.partition("=")
        key = key.rstrip(" \t")
        if not equals or not key or key.strip(_KEY_LETTERS) or not key[0].isalpha():
            raise ServiceError(f"line {count}: not key=value")
        value = _config_value(raw.strip(" \t"), count)
        if key != "force-user" and key not in _FLAGS:
            log(f"line {count}: {key} is ignored, it is not known")
            continue
        if key in seen:
            raise ServiceError(f"line {count}: {key} given twice")
        seen.add(key)
        if key == "force-user":
            if not isinstance(value, str):
                raise ServiceError(f"line {count}: force-user wants a string")
            config.force_user = user_name(value)
        else:
            setattr(config, _FLAGS[key], _flag(value, key, count, numbers=key == "wait-for-session"))
    if config.force_user and (config.skip_descriptor or config.exit_on_service_eof or config.exit_on_client_eof):
        raise ServiceError("force-user does not go together with the options of socket services")
    return config


_KEY_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_"


def _config_value(text: str, count: int) -> str | bool | int:
    if text.startswith("'"):
        value, quote, rest = text[1:].partition("'")
        # Two quotes and a third one begin a string of several lines, which neither upstream nor we read.
        if not quote or not _is_comment(rest) or not value.isascii() or not value.isprintable():
            raise ServiceError(f"line {count}: malformed string")
        return value
    word = text.partition("#")[0].rstrip(" \t")
    if word in ("true", "false"):
        return word == "true"
    try:
        return number(word)
    except CasemateError:
        raise ServiceError(f"line {count}: malformed value") from None


def _is_comment(text: str) -> bool:
    left = text.lstrip(" \t")
    return not left or left.startswith("#")


def _flag(value: str | bool | int, key: str, count: int, numbers: bool = False) -> bool:
    if isinstance(value, bool):
        return value
    if numbers and value in (0, 1) and isinstance(value, int):
        return value == 1
    raise ServiceError(f"line {count}: {key} wants true or false")
