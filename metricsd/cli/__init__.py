"""The command line: one file a noun, each imported when its command is used.

This package's own module holds only the table of commands, so that `metricsd status` can pass through it in no time
and `metricsd --help` lists every command without importing one.
"""

from __future__ import annotations

from typing import NamedTuple


class Entry(NamedTuple):
    """Where a command lives (`module:attribute`) and its line in the help."""

    target: str
    help: str


COMMANDS: dict[str, Entry] = {
    "run": Entry("metricsd.cli.run:run", "Run the daemon in the foreground, with --with-cloud a cloud of its own."),
    "up": Entry("metricsd.cli.updown:up", "Start the daemon in the background and wait until it is ready."),
    "down": Entry("metricsd.cli.updown:down", "Stop the daemon and wait until it has ended."),
    "status": Entry("metricsd.cli.app:status", "Show what runs, what waits, and why sync is off if it is."),
    "sync": Entry("metricsd.cli.sync:sync", "Sync with the cloud now and say what moved."),
    "mode": Entry("metricsd.cli.mode:mode", "Show the failover mode and why; force one, or let it be automatic."),
    "today": Entry("metricsd.cli.report:today", "Show what was done since midnight."),
    "report": Entry("metricsd.cli.report:report", "Report by day, week, tool, project or session."),
    "export": Entry("metricsd.cli.export:export", "Write every event and record as JSON lines or CSV."),
    "record": Entry("metricsd.cli.record:record", "Write one event into the spool, as a hook does."),
    "demo": Entry("metricsd.cli.demo:demo", "Show it all in a throw-away home: two devices, a cloud, an outage."),
    "hooks": Entry("metricsd.cli.hooks:hooks", "Register the capture hook with AI tools."),
    "login": Entry("metricsd.cli.login:login", "Make this installation a device of a cloud."),
    "logout": Entry("metricsd.cli.login:logout", "Forget the cloud; everything local stays."),
    "config": Entry("metricsd.cli.config:config", "Show and check the settings."),
    "privacy": Entry("metricsd.cli.privacy:privacy", "Show exactly what would be sent."),
    "session": Entry("metricsd.cli.session:session", "Look at sessions, and describe, tag or delete them."),
    "quarantine": Entry("metricsd.cli.quarantine:quarantine", "See, retry or purge what could not be accepted."),
    "conflicts": Entry(
        "metricsd.cli.conflicts:conflicts", "See records that two devices changed; bring back what lost."
    ),
    "policy": Entry("metricsd.cli.policy:policy", "See, check and try conflict policies."),
    "uninstall": Entry(
        "metricsd.cli.uninstall:uninstall", "Take metricsd out of the machine; data only if you say so."
    ),
    "doctor": Entry("metricsd.cli.doctor:doctor", "Look at everything from the hook to the cloud, and say what to do."),
    "service": Entry("metricsd.cli.service:service", "Have the daemon started at login."),
    "migrate": Entry("metricsd.cli.migrate:migrate", "Bring in what older hooks, transcripts or an export left."),
    "legacy": Entry("metricsd.cli.legacy:legacy", "Convert records of the older system."),
    "logs": Entry("metricsd.cli.logs:logs", "Show the daemon's log."),
    "cloud": Entry("metricsd.cli.cloud:cloud", "Serve a cloud; tenants and tokens."),
}
