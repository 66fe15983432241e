"""Every error that may reach a user: a class has its name on the wire and the exit status of a tool.

The message is for a person. It says what was asked, what is wrong, and where that helps what to do. Both ends of the
Admin API use these classes: the daemon sends ``wire_name`` and the message, the client raises the class of that name.
Names on the wire are those of Qubes OS, so that its clients, too, raise what they know. A module that needs an error of
its own declares a subclass beside its user; `all_errors` finds it.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar


def printable(text: str, limit: int = 512) -> str:
    """Text that is safe on a terminal and in a log, at most ``limit`` characters long.

    Characters other than ASCII 0x20 to 0x7e are written as ``\\xNN`` or ``\\uNNNN``.
    """
    out = "".join(c if " " <= c <= "~" else c.encode("unicode_escape").decode() for c in text)
    return out if len(out) <= limit else out[: limit - 3] + "..."


class CasemateError(Exception):
    """Base of all errors meant for a user; any other exception is a fault of the program."""

    wire_name: ClassVar[str] = "QubesException"
    """Name of the exception in an error reply; this one is what clients fall back to."""
    exit_status: ClassVar[int] = 1
    """What a command-line tool returns."""

    def __init__(self, message: str = "") -> None:
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        return self.message


class InternalError(CasemateError):
    """A fault of the daemon; the message has an id under which the log says more."""


class NotFoundError(CasemateError):
    """No such qube."""

    wire_name = "QubesVMNotFoundError"

    def __init__(self, name: str = "", message: str | None = None) -> None:
        super().__init__(message if message is not None else f"No such qube: '{printable(name)}'")


class AlreadyExistsError(CasemateError):
    """The name is taken."""

    wire_name = "QubesVMAlreadyExistsError"


class QubeError(CasemateError):
    """Something is wrong with one qube."""

    wire_name = "QubesVMError"


class InUseError(CasemateError):
    """Something else uses the qube: it is a template or a net qube of others, or it runs."""

    wire_name = "QubesVMInUseError"


class NotStartedError(CasemateError):
    """The qube is not started."""

    wire_name = "QubesVMNotStartedError"


class NotRunningError(NotStartedError):
    """The qube is not running."""

    wire_name = "QubesVMNotRunningError"


class NotPausedError(NotStartedError):
    """The qube is not paused."""

    wire_name = "QubesVMNotPausedError"


class NotHaltedError(CasemateError):
    """The qube must be halted for this."""

    wire_name = "QubesVMNotHaltedError"


class ShutdownTimeoutError(CasemateError):
    """The qube did not shut down in time."""

    wire_name = "QubesVMShutdownTimeoutError"


class StartError(QubeError):
    """The qube could not be started; nothing of the attempt is left."""


class NoTemplateError(CasemateError):
    """The class needs a template and none was given."""

    wire_name = "QubesNoTemplateError"


class ValueInvalidError(CasemateError):
    """A value that is not allowed where it was given."""

    wire_name = "QubesValueError"


class PropertyValueError(ValueInvalidError):
    """A value that the property does not accept."""

    wire_name = "QubesPropertyValueError"


class NoSuchPropertyError(CasemateError):
    """No such property on this object."""

    wire_name = "QubesNoSuchPropertyError"


class FeatureNotFoundError(CasemateError):
    """No such feature on this qube."""

    wire_name = "QubesFeatureNotFoundError"


class TagNotFoundError(CasemateError):
    """No such tag on this qube."""

    wire_name = "QubesTagNotFoundError"


class LabelNotFoundError(CasemateError):
    """No such label."""

    wire_name = "QubesLabelNotFoundError"


class LabelInUseError(CasemateError):
    """The label is used by a qube."""

    wire_name = "QubesLabelInUseError"


class PoolNotFoundError(CasemateError):
    """No such storage pool."""

    wire_name = "QubesPoolNotFoundError"


class PoolInUseError(CasemateError):
    """The storage pool holds volumes of qubes."""

    wire_name = "QubesPoolInUseError"


class VolumeNotFoundError(CasemateError):
    """No such volume."""

    wire_name = "QubesVolumeNotFoundError"


class StorageError(CasemateError):
    """A storage operation failed."""

    wire_name = "StoragePoolException"


class RevisionNotFoundError(CasemateError):
    """The volume has no such older state."""

    wire_name = "QubesVolumeRevisionNotFoundError"


class NotesError(CasemateError):
    """The notes of a qube cannot be read or written."""

    wire_name = "QubesNotesError"


class DeviceNotFoundError(CasemateError):
    """No such device."""

    wire_name = "DeviceNotFound"


class DeviceAlreadyAttachedError(CasemateError):
    """The device is attached to a qube already."""

    wire_name = "DeviceAlreadyAttached"


class DeviceAlreadyAssignedError(CasemateError):
    """The device is assigned to the qube already."""

    wire_name = "DeviceAlreadyAssigned"


class DeviceUnrecognizedError(CasemateError):
    """Another device than the expected one is at that port."""

    wire_name = "UnrecognizedDevice"


class DeviceAssignmentModeError(CasemateError):
    """No such mode of an assignment."""

    wire_name = "QubesUnrecognizedDeviceAssignmentMode"


class DeviceDeniedError(CasemateError):
    """The qube may not get devices of that kind."""


class DeviceBusyError(CasemateError):
    """The device is in use, or the qube does not release it."""


class DeviceNotAssignedError(CasemateError):
    """The device is not assigned or attached to the qube."""

    wire_name = "DeviceNotAssigned"


class RecipeNotFoundError(CasemateError):
    """A template was not built from a recipe, or the recipe is not known."""

    wire_name = "RecipeNotFoundError"


class NoBuildError(CasemateError):
    """No template of that name is being built."""

    wire_name = "NoBuildError"


class BackupProfileNotFoundError(CasemateError):
    """No such profile of a backup."""

    wire_name = "QubesBackupProfileNotFoundError"


class OutOfMemoryError(CasemateError):
    """Not enough memory on the host to start the qube."""

    wire_name = "QubesMemoryError"


class NotImplementedHereError(CasemateError):
    """A call that this host cannot serve."""

    wire_name = "QubesNotImplementedError"


class ProtocolError(CasemateError):
    """Bytes that break a protocol. Upstream's clients construct it without %-formatting."""

    wire_name = "ProtocolError"
    exit_status = 125


class PermissionDeniedError(CasemateError):
    """The denial, the same for every cause. Upstream's clients construct it without %-formatting."""

    wire_name = "PermissionDenied"

    def __init__(self, message: str = "Permission denied") -> None:
        super().__init__(message)


class DaemonAccessError(CasemateError):
    """The daemon gave no answer or cannot be reached."""

    wire_name = "QubesDaemonAccessError"


class DisconnectedError(CasemateError):
    """The database or channel of a qube is gone; refresh and try again."""

    wire_name = "QubesDaemonCommunicationError"


class StoreError(CasemateError):
    """The store's file cannot be read or written; the message names file, line and reason."""


class LockTimeoutError(StoreError):
    """The store's lock was not free in time; the message names the holder."""

    exit_status = 75


class HypervisorError(CasemateError):
    """libvirt refused or failed; the message says what was asked and what it answered."""


class ToolError(CasemateError):
    """A program of the host failed; the message names it and shows the end of what it said."""


class TemplateBuildError(CasemateError):
    """A template or kernel could not be built; the message names the step and shows what its tool said."""


class PolicyError(CasemateError):
    """A policy file that does not parse: everything is denied until it does."""


class PolicyFileNotFoundError(CasemateError):
    """No such file of the policy."""

    wire_name = "PolicyAdminFileNotFoundException"


class PolicyFileNameError(CasemateError):
    """Not a name for a file of the policy."""

    wire_name = "PolicyAdminInvalidFileNameException"


class PolicySyntaxError(CasemateError):
    """The policy would not parse with this change; nothing was changed."""

    wire_name = "PolicyAdminSyntaxException"


class PolicyTokenError(CasemateError):
    """The file is not in the state that the token stands for; nothing was changed."""

    wire_name = "PolicyAdminTokenException"


class CallRefusedError(CasemateError):
    """A qrexec call that policy, limits or the target refused.

    ``cause`` is a word or two for the log and for local users, never for the caller.
    """

    exit_status = 126

    def __init__(self, message: str = "", cause: str = "refused") -> None:
        super().__init__(message)
        self.cause = cause


def all_errors() -> list[type[CasemateError]]:
    """Every error class, the base first: clients look wire names up in this list."""
    found: list[type[CasemateError]] = [CasemateError]
    for cls in found:
        found.extend(sub for sub in cls.__subclasses__() if sub not in found)
    return found
