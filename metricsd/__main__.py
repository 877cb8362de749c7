"""The program `metricsd`: what `python -m metricsd` and the console script run.

`status` and `today` take a path of their own in front of click, which alone would cost more than the whole answer. Every error
of ours, and of the operating system, leaves as one line `metricsd: ...` on stderr with its exit code; a traceback is
a fault of metricsd.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence

from metricsd.errors import EXIT_FAILED, MetricsdError

EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141
"""What a shell reports for a program that SIGPIPE ended, which is what a closed pipe means."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (without the program's name) and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _dispatch(arguments)
        sys.stdout.flush()
    except MetricsdError as error:
        sys.stderr.write(f"metricsd: {_one_line(error)}\n")
        return error.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The interpreter flushes stdout once more at exit; give it a place where that works.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return EXIT_BROKEN_PIPE
    except OSError as error:
        # The disk or a permission, at a place that had nothing more exact to say.
        sys.stderr.write(f"metricsd: {error.filename or 'input or output'}: {error.strerror or error}\n")
        return EXIT_FAILED
    return code


def _dispatch(arguments: list[str]) -> int:
    _create_spool()
    if arguments[:1] == ["status"] and set(arguments[1:]) <= {"--json"}:
        from metricsd.cli.status import run_status

        return run_status(as_json="--json" in arguments)
    if arguments[:1] == ["today"] and set(arguments[1:]) <= {"--json"}:
        from metricsd.cli.today import run_today

        return run_today(as_json="--json" in arguments)
    from metricsd.cli.app import run_command

    return run_command(arguments)


def _create_spool() -> None:
    """Create a missing spool, so that hooks can write from now on; a command that needs it says why it cannot."""
    from metricsd.config import find_paths
    from metricsd.spool import ensure_spool

    with contextlib.suppress(OSError, MetricsdError):
        ensure_spool(find_paths().spool)


def _one_line(error: MetricsdError) -> str:
    return " ".join(str(error).split())


if __name__ == "__main__":
    sys.exit(main())
