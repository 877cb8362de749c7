"""The control socket's address, its messages, and the client's half.

Newline-delimited JSON over a Unix socket that only its owner reaches: 0600 in a 0700 folder, and both ends check
the other's user id. Each request is one line `{"v","verb",...}`, each reply one line `{"v","version","ok",...}`;
sizes and times are bounded on both ends. `metricsd status` imports this within its 60 ms, so it needs nothing but
the standard library's socket and json.
"""

from __future__ import annotations

import json
import os
import socket
import stat
import struct
import sys
import time
from pathlib import Path
from typing import Any

from metricsd import errors
from metricsd.errors import DaemonNotRunning, MetricsdError

CONTROL_VERSION = 1
REQUEST_BYTES_MAX = 64 * 1024
REPLY_BYTES_MAX = 4 * 1024 * 1024
# sun_path holds 104 bytes on macOS and 108 on Linux, with the final NUL.
SOCKET_PATH_BYTES_MAX = 103
# Not TMPDIR: the daemon's environment and the shell's may differ, and both ends must find the same place.
SHORT_FOLDER = Path("/tmp")  # noqa: S108 - the folder below it is checked to be ours and private
_SOL_LOCAL = 0
_LOCAL_PEERCRED = 1


class DaemonSilent(MetricsdError):
    """The daemon does not answer; `metricsd logs` shows what it does, `metricsd down` stops it."""


def socket_path(state_dir: Path) -> Path:
    """Return where the control socket of this home is: inside it, or under a short hashed name when that is too long."""
    path = state_dir / "run" / "control.sock"
    if len(os.fsencode(path)) <= SOCKET_PATH_BYTES_MAX:
        return path
    # Imported here because few homes need it and `status` counts milliseconds.
    from hashlib import blake2b

    digest = blake2b(os.fsencode(state_dir), digest_size=8).hexdigest()
    return SHORT_FOLDER / f"metricsd-{os.getuid()}" / f"{digest}.sock"


def check_folder(folder: Path) -> None:
    """Raise MetricsdError unless `folder` is a real folder of this user that nobody else may enter."""
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise MetricsdError(f"{folder}: must be a folder of yours with mode 0700: remove it or repair its permissions")


def peer_uid(connection: socket.socket) -> int:
    """Return the user id of the process at the other end of a Unix socket."""
    if sys.platform == "darwin":
        # struct xucred: version, uid, ngroups, groups[16].
        raw = connection.getsockopt(_SOL_LOCAL, _LOCAL_PEERCRED, 76)
        return int(struct.unpack_from("=II", raw)[1])
    # struct ucred: pid, uid, gid.
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int(struct.unpack("=iII", raw)[1])


def call(state_dir: Path, verb: str, *, timeout_s: float, **arguments: Any) -> dict[str, Any]:
    """Send one request to the daemon of this home and return its result.

    `timeout_s` bounds everything together. Raises DaemonNotRunning when nobody listens, DaemonSilent when the time
    is up or the answer is not one, and the error that the daemon answered with.
    """
    reply = _exchange(socket_path(state_dir), {"v": CONTROL_VERSION, "verb": verb, **arguments}, timeout_s)
    if reply.get("ok") is True and isinstance(reply.get("result"), dict):
        result: dict[str, Any] = reply["result"]
        return result
    failure = reply.get("error")
    if not isinstance(failure, dict):
        raise DaemonSilent(
            "the daemon's answer is not one of ours: another version? restart it with `metricsd down` and `metricsd up`"
        )
    raise _error_of(failure)


def _error_of(failure: dict[str, Any]) -> MetricsdError:
    kind = getattr(errors, str(failure.get("kind")), MetricsdError)
    message = str(failure.get("message") or "the daemon failed; see `metricsd logs`")
    error = MetricsdError(message)
    if isinstance(kind, type) and issubclass(kind, MetricsdError):
        # Some classes take more than a message; the class is what decides the exit code.
        error = kind.__new__(kind)
        MetricsdError.__init__(error, message)
    return error


def _exchange(path: Path, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
    deadline = time.monotonic() + timeout_s
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout_s)
        try:
            check_folder(path.parent)
            connection.connect(os.fspath(path))
            if peer_uid(connection) != os.getuid():
                raise MetricsdError(f"{path}: another user listens there: remove the socket and start the daemon again")
            connection.sendall(json.dumps(request).encode() + b"\n")
            line = _read_line(connection, deadline)
        except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError) as error:
            raise DaemonNotRunning from error
        except TimeoutError as error:
            raise DaemonSilent(f"the daemon did not answer within {timeout_s:g} s; see `metricsd logs`") from error
        except OSError as error:
            raise DaemonSilent(f"the daemon's socket {path} failed ({error.strerror}); see `metricsd logs`") from error
    try:
        reply = json.loads(line)
    except ValueError as error:
        raise DaemonSilent("the daemon closed the connection without an answer; see `metricsd logs`") from error
    return reply if isinstance(reply, dict) else {}


def _read_line(connection: socket.socket, deadline: float) -> bytes:
    parts: list[bytes] = []
    size = 0
    while size <= REPLY_BYTES_MAX:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        connection.settimeout(left)
        part = connection.recv(65536)
        parts.append(part)
        size += len(part)
        if not part or part.endswith(b"\n"):
            return b"".join(parts)
    raise OSError(0, "answer too long")
