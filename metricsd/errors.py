"""Every error that metricsd raises for the world's faults, as one tree.

The docstring of a class is the sentence that the user reads when nobody gave a more exact one; it says what to
do next. `retryable` and `exit_code` belong to the class, so that no caller decides them twice.

    MetricsdError
    ├── UsageError               exit 2
    │   ├── ConfigError
    │   └── PolicyError
    ├── DaemonNotRunning         exit 4
    ├── AlreadyRunning
    ├── ModeForced               exit 3: a person wants nothing sent
    ├── LineRejected             one line of input, to quarantine; carries a stable `reason`
    ├── StoreError
    │   ├── StoreUnavailable     retryable: full, read-only, locked
    │   │   ├── SpoolUnavailable the store is well, the folder of the captures is not
    │   │   └── BackupFailed     the store is well, its copy could not be made
    │   ├── StoreCorrupt
    │   ├── StoreReplaced        retryable: a round began on another store
    │   └── SchemaTooNew
    ├── CloudError
    │   ├── CloudUnreachable     retryable
    │   ├── CloudBusy            retryable, with `retry_after_s`
    │   ├── CloudRefused         permanent: the request itself is wrong
    │   ├── HistoryChanged       the cloud was restored from a backup
    │   │   └── CursorExpired    this device was away for longer than deletions are kept
    │   ├── StreamForked         another device wrote under our identity
    │   └── AuthError            exit 5
    ├── SourceChanged            a migration's source is not what it was
    ├── MigrationPaused          a migration waits for a person's word
    ├── RollbackUnproven         it would have changed something else
    ├── HooksError
    └── ServiceError
"""

from __future__ import annotations

from enum import StrEnum

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_DEGRADED = 3
EXIT_NO_DAEMON = 4
EXIT_LOGIN = 5


class MetricsdError(Exception):
    """Something went wrong; see `metricsd logs`."""

    retryable = False
    exit_code = EXIT_FAILED

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (self.__doc__ or "").strip())


class UsageError(MetricsdError):
    """The command line is wrong; see `metricsd COMMAND --help`."""

    exit_code = EXIT_USAGE


class ConfigError(UsageError):
    """The configuration is wrong; `metricsd config check` names the file, line and key."""


class PolicyError(UsageError):
    """The conflict policy is wrong; `metricsd policy lint` names the file, line and key."""


class DaemonNotRunning(MetricsdError):
    """The daemon is not running; start it with `metricsd up`."""

    exit_code = EXIT_NO_DAEMON


class AlreadyRunning(MetricsdError):
    """Another daemon already runs in this home; `metricsd status` shows it, `metricsd down` stops it."""


class ModeForced(MetricsdError):
    """Nothing is sent: somebody forced the mode local_only; `metricsd mode auto` ends that."""

    exit_code = EXIT_DEGRADED


class LineRejected(MetricsdError):
    """A line of input cannot be accepted; it lies in quarantine (`metricsd quarantine list`)."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


class StoreError(MetricsdError):
    """The local store failed; `metricsd status` names the file."""


class StoreUnavailable(StoreError):
    """The local store cannot be written now; free disk space or restore permissions, nothing is lost meanwhile."""

    retryable = True


class SpoolUnavailable(StoreUnavailable):
    """A capture is stored and cannot be deleted; repair the permissions of the spool, nothing is doubled meanwhile."""


class BackupFailed(StoreUnavailable):
    """The nightly copy of the store could not be made; free disk space or repair the permissions of `backups`."""


class StoreCorrupt(StoreError):
    """The local store is damaged; start the daemon with `metricsd up`, it repairs the store."""


class StoreReplaced(MetricsdError):
    """The local store was put back while a round of sync ran; the next round starts over."""

    retryable = True


class SchemaTooNew(StoreError):
    """This database was written by a newer metricsd; upgrade metricsd to open it."""


class SchemaStepFailed(StoreError):
    """A schema step failed and left nothing behind; the database stays on the step it is on."""


class CloudError(MetricsdError):
    """The cloud answered with an error."""


class Fault(StrEnum):
    """How a cloud cannot be reached."""

    REFUSED = "refused"
    RESET = "reset"
    NAME = "name"
    TLS = "tls"
    NOT_OURS = "not_ours"
    """Somebody answers who is no metricsd cloud: a captive portal, a proxy, a wrong address."""
    SILENT = "silent"
    """A probe got no answer."""
    TIMEOUT = "timeout"
    SERVER = "server"
    OTHER = "other"


class CloudUnreachable(CloudError):
    """The cloud cannot be reached; events are kept and sent when it is back."""

    retryable = True

    def __init__(self, message: str | None = None, fault: Fault = Fault.OTHER) -> None:
        super().__init__(message)
        self.fault = fault


class CloudBusy(CloudError):
    """The cloud asks to slow down; the next attempt honours its Retry-After."""

    retryable = True

    def __init__(self, message: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class CloudRefused(CloudError):
    """The cloud refused the request; `metricsd quarantine list` shows what it refused."""

    def __init__(self, message: str | None = None, status: int = 0, code: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class HistoryChanged(CloudError):
    """The cloud's history changed (restored from a backup?); everything it lost is offered again."""

    retryable = True


class CursorExpired(HistoryChanged):
    """This device was away for longer than the cloud keeps deletions; everything is compared again."""


class StreamForked(CloudError):
    """Another installation wrote under this device's identity; this one enrols again as a new device."""

    retryable = True


class AuthError(CloudError):
    """Log in first: `metricsd login URL`."""

    exit_code = EXIT_LOGIN


class SourceChanged(MetricsdError):
    """The source changed before what is loaded; put it back and resume, or begin anew with `metricsd migrate run`."""


class MigrationPaused(MetricsdError):
    """Too much of the source was rejected; see `metricsd migrate report ID`, then resume with `--accept-rejects`."""


class RollbackUnproven(MetricsdError):
    """The rollback would have changed something else too; nothing was changed, please report this."""


class HooksError(MetricsdError):
    """The tool's settings could not be changed; they are as they were."""


class ServiceError(MetricsdError):
    """The service manager refused; `metricsd up` starts the daemon without one."""
