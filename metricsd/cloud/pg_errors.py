"""What PostgreSQL's errors mean for a request: what passes by itself is 503 with Retry-After, the rest is a fault.

Nothing of an error's text reaches a client, because it may quote values; its class name does, for whoever reads logs.
"""

from __future__ import annotations

import asyncpg

from metricsd.cloud.problems import Refused, busy, refuse
from metricsd.errors import MetricsdError, UsageError

SCHEMA_RETRY_S = 60.0
_WRONG_PLACE = (asyncpg.InvalidCatalogNameError, asyncpg.InvalidAuthorizationSpecificationError)
"""The URL names a database or login that the server does not know, or a wrong password."""
_PASSING = (
    *_WRONG_PLACE,
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.InsufficientResourcesError,
    asyncpg.OperatorInterventionError,
    asyncpg.TransactionRollbackError,
    # Locked or in use, and a database that an administrator shut for a while.
    asyncpg.ObjectNotInPrerequisiteStateError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.PostgresSystemError,
)
_ABSENT = (
    asyncpg.UndefinedTableError,
    asyncpg.UndefinedColumnError,
    asyncpg.InvalidSchemaNameError,
    asyncpg.UndefinedObjectError,
    asyncpg.InvalidParameterValueError,
)


def schema_not_ready(detail: str) -> Refused:
    """Return the refusal for a schema that an administrator must bring up to date first."""
    return refuse(503, "schema_not_ready", detail, retry_after_s=SCHEMA_RETRY_S)


def as_refusal(error: BaseException) -> BaseException:
    """Return 503 for what passes by itself; anything else is a fault of ours and comes back as it is."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, _PASSING):
        return busy(f"the database cannot be used now ({type(error).__name__})")
    if isinstance(error, _ABSENT):
        return schema_not_ready(
            f"a schema or role is missing or old ({type(error).__name__}): `metricsd cloud migrate-schema` brings all"
            " up to date; a tenant that was dropped stays away"
        )
    return error


def will_pass(error: BaseException) -> bool:
    """Return whether a refusal is one that waiting may end: not a login or database that the server does not know."""
    return isinstance(error, Refused) and not isinstance(error.__cause__, _WRONG_PLACE)


def as_told(error: BaseException) -> BaseException:
    """Return what an administrator at the command line is told."""
    cause = error.__cause__ if isinstance(error, Refused) else error
    if isinstance(cause, _WRONG_PLACE):
        return UsageError(f"--database: {cause}")
    if isinstance(cause, OSError):
        return UsageError(f"--database: the server does not answer ({cause.strerror or type(cause).__name__})")
    if isinstance(cause, asyncpg.InsufficientPrivilegeError):
        return UsageError(f"this login may not do that ({cause}): give the owner's URL to --database")
    return error if isinstance(error, MetricsdError) else as_refusal(error)
