"""Every exception of the library, by its class and by the name that the Admin API sends.

``CasemateError`` is the base of all. A name such as ``QubesVMNotFoundError`` is the same class as the one beside it, so
that scripts written for Qubes OS find what they know. Where a lookup in a mapping fails, the exception is a KeyError,
and for a property an AttributeError, too.
"""

from __future__ import annotations

from casemate.library.calls import CallFailedError as CallFailedError
from casemate.library.calls import CallTimeoutError as CallTimeoutError
from casemate.library.calls import OutputTooLongError as OutputTooLongError
from casemate.library.qube import MissingPropertyError as MissingPropertyError
from casemate.library.qubes import MissingQubeError as MissingQubeError
from casemate.library.settings import MissingFeatureError as MissingFeatureError
from casemate.library.volumes import MissingVolumeError as MissingVolumeError
from casemate.wire.errors import AlreadyExistsError as AlreadyExistsError
from casemate.wire.errors import BackupProfileNotFoundError as BackupProfileNotFoundError
from casemate.wire.errors import CallRefusedError as CallRefusedError
from casemate.wire.errors import CasemateError as CasemateError
from casemate.wire.errors import DaemonAccessError as DaemonAccessError
from casemate.wire.errors import DeviceAlreadyAssignedError as DeviceAlreadyAssignedError
from casemate.wire.errors import DeviceAlreadyAttachedError as DeviceAlreadyAttachedError
from casemate.wire.errors import DeviceAssignmentModeError as DeviceAssignmentModeError
from casemate.wire.errors import DeviceBusyError as DeviceBusyError
from casemate.wire.errors import DeviceDeniedError as DeviceDeniedError
from casemate.wire.errors import DeviceNotAssignedError as DeviceNotAssignedError
from casemate.wire.errors import DeviceNotFoundError as DeviceNotFoundError
from casemate.wire.errors import DeviceUnrecognizedError as DeviceUnrecognizedError
from casemate.wire.errors import DisconnectedError as DisconnectedError
from casemate.wire.errors import FeatureNotFoundError as FeatureNotFoundError
from casemate.wire.errors import HypervisorError as HypervisorError
from casemate.wire.errors import InternalError as InternalError
from casemate.wire.errors import InUseError as InUseError
from casemate.wire.errors import LabelInUseError as LabelInUseError
from casemate.wire.errors import LabelNotFoundError as LabelNotFoundError
from casemate.wire.errors import LockTimeoutError as LockTimeoutError
from casemate.wire.errors import NoBuildError as NoBuildError
from casemate.wire.errors import NoSuchPropertyError as NoSuchPropertyError
from casemate.wire.errors import NoTemplateError as NoTemplateError
from casemate.wire.errors import NotesError as NotesError
from casemate.wire.errors import NotFoundError as NotFoundError
from casemate.wire.errors import NotHaltedError as NotHaltedError
from casemate.wire.errors import NotImplementedHereError as NotImplementedHereError
from casemate.wire.errors import NotPausedError as NotPausedError
from casemate.wire.errors import NotRunningError as NotRunningError
from casemate.wire.errors import NotStartedError as NotStartedError
from casemate.wire.errors import OutOfMemoryError as OutOfMemoryError
from casemate.wire.errors import PermissionDeniedError as PermissionDeniedError
from casemate.wire.errors import PolicyError as PolicyError
from casemate.wire.errors import PolicyFileNameError as PolicyFileNameError
from casemate.wire.errors import PolicyFileNotFoundError as PolicyFileNotFoundError
from casemate.wire.errors import PolicySyntaxError as PolicySyntaxError
from casemate.wire.errors import PolicyTokenError as PolicyTokenError
from casemate.wire.errors import PoolInUseError as PoolInUseError
from casemate.wire.errors import PoolNotFoundError as PoolNotFoundError
from casemate.wire.errors import PropertyValueError as PropertyValueError
from casemate.wire.errors import ProtocolError as ProtocolError
from casemate.wire.errors import QubeError as QubeError
from casemate.wire.errors import RecipeNotFoundError as RecipeNotFoundError
from casemate.wire.errors import RevisionNotFoundError as RevisionNotFoundError
from casemate.wire.errors import ShutdownTimeoutError as ShutdownTimeoutError
from casemate.wire.errors import StartError as StartError
from casemate.wire.errors import StorageError as StorageError
from casemate.wire.errors import StoreError as StoreError
from casemate.wire.errors import TagNotFoundError as TagNotFoundError
from casemate.wire.errors import TemplateBuildError as TemplateBuildError
from casemate.wire.errors import ToolError as ToolError
from casemate.wire.errors import ValueInvalidError as ValueInvalidError
from casemate.wire.errors import VolumeNotFoundError as VolumeNotFoundError

DeviceAlreadyAssigned = DeviceAlreadyAssignedError
DeviceAlreadyAttached = DeviceAlreadyAttachedError
DeviceNotAssigned = DeviceNotAssignedError
DeviceNotFound = DeviceNotFoundError
PermissionDenied = PermissionDeniedError
PolicyAdminFileNotFoundException = PolicyFileNotFoundError
PolicyAdminInvalidFileNameException = PolicyFileNameError
PolicyAdminSyntaxException = PolicySyntaxError
PolicyAdminTokenException = PolicyTokenError
QubesBackupProfileNotFoundError = BackupProfileNotFoundError
QubesDaemonAccessError = DaemonAccessError
QubesDaemonCommunicationError = DisconnectedError
QubesException = CasemateError
QubesFeatureNotFoundError = FeatureNotFoundError
QubesLabelInUseError = LabelInUseError
QubesLabelNotFoundError = LabelNotFoundError
QubesMemoryError = OutOfMemoryError
QubesNoSuchPropertyError = NoSuchPropertyError
QubesNoTemplateError = NoTemplateError
QubesNotImplementedError = NotImplementedHereError
QubesNotesError = NotesError
QubesPoolInUseError = PoolInUseError
QubesPoolNotFoundError = PoolNotFoundError
QubesPropertyValueError = PropertyValueError
QubesTagNotFoundError = TagNotFoundError
QubesUnrecognizedDeviceAssignmentMode = DeviceAssignmentModeError
QubesVMAlreadyExistsError = AlreadyExistsError
QubesVMError = QubeError
QubesVMInUseError = InUseError
QubesVMNotFoundError = NotFoundError
QubesVMNotHaltedError = NotHaltedError
QubesVMNotPausedError = NotPausedError
QubesVMNotRunningError = NotRunningError
QubesVMNotStartedError = NotStartedError
QubesVMShutdownTimeoutError = ShutdownTimeoutError
QubesValueError = ValueInvalidError
QubesVolumeNotFoundError = VolumeNotFoundError
QubesVolumeRevisionNotFoundError = RevisionNotFoundError
StoragePoolException = StorageError
UnrecognizedDevice = DeviceUnrecognizedError
