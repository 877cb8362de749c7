"""`login` and `logout`: make this installation a device of a cloud, and forget that again.

A one-time enrolment code may be an argument, because it is worth nothing once it was used. A token is read from stdin or
asked for without echo, never taken as an argument: those are in every process list and shell history. Logging out
deletes the secrets alone; what was recorded stays and is offered again at the next login.
"""

from __future__ import annotations

import asyncio
import json
import sys

import click

from metricsd import identity
from metricsd.cli.status_text import counted
from metricsd.cloud.codes import parse_code
from metricsd.config import find_paths, load_config
from metricsd.errors import UsageError

TOKEN_CHARS_MAX = 4096


@click.command()
@click.argument("url")
@click.option("--code", help="The one-time enrolment code, instead of asking for it.")
@click.option("--token-stdin", is_flag=True, help="Read the enrolment token or code from stdin instead.")
@click.option(
    "--name", default="", metavar="LABEL", help="What this device is called in the cloud; nothing is guessed."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON; fields are only added.")
def login(url: str, code: str | None, token_stdin: bool, name: str, as_json: bool) -> None:
    """Make this installation a device of the cloud at URL."""
    from metricsd.client import check_url
    from metricsd.sync.login import login as enrol

    paths = find_paths()
    settings = load_config(paths).sync
    base = check_url(url)
    done = asyncio.run(enrol(paths, base, _secret(code, token_stdin), name, settings))
    if as_json:
        shown = {"url": done.url, "tenant": done.tenant, "user": done.user, "device_id": done.device_id}
        click.echo(json.dumps(shown))
        return
    click.echo(f"logged in to {done.url} as {done.user} of {done.tenant} (device {done.device_id[:8]})")
    click.echo("`metricsd sync --now` sends what is here; `metricsd privacy show` shows exactly what that is")


@click.command()
@click.option("--take-back", is_flag=True, help="First remove from the cloud what this device sent.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; fields are only added.")
def logout(take_back: bool, as_json: bool) -> None:
    """Forget the cloud's token; everything that was recorded stays here."""
    if take_back:
        _take_back(as_json)
        return
    was_in = identity.forget_login(find_paths())
    if as_json:
        click.echo(json.dumps({"logged_out": was_in}))
        return
    click.echo("logged out: events are kept here and sent after the next login" if was_in else "not logged in")


def _take_back(as_json: bool) -> None:
    from metricsd.sync.login import take_back

    paths = find_paths()
    removed = asyncio.run(take_back(paths, load_config(paths).sync))
    if as_json:
        click.echo(
            json.dumps({"logged_out": True, "events_removed": removed.events, "records_removed": removed.records})
        )
        return
    click.echo(
        f"the cloud removed {counted(removed.events, 'event')} and {counted(removed.records, 'record')} of this device"
    )
    click.echo("logged out: what was recorded is kept here; after another login it would be sent again")


def _secret(code: str | None, from_stdin: bool) -> str:
    """Return the code, in its one form, or the token that this device enrols with; raise UsageError without one."""
    if code is not None and from_stdin:
        raise UsageError("--code and --token-stdin are two ways for one thing: give one of them")
    if code is not None:
        return _code(code)
    if from_stdin:
        text = sys.stdin.read(TOKEN_CHARS_MAX + 1)
    elif sys.stdin.isatty():
        text = _asked()
    else:
        raise UsageError("there is no terminal to ask for the code: give --code, or pipe it in with --token-stdin")
    token = text.strip()
    if not token or len(token) > TOKEN_CHARS_MAX:
        raise UsageError("no usable code was given: `metricsd cloud enrol` prints one")
    found = parse_code(token)
    return token if found is None else found.text()


def _asked() -> str:
    text = str(click.prompt("enrolment code (Enter to give a token instead)", default="", show_default=False, err=True))
    return text if text.strip() else str(click.prompt("enrolment token", hide_input=True, err=True))


def _code(text: str) -> str:
    found = parse_code(text)
    if found is None:
        # What is not a code may be a token, which must not be repeated on a screen.
        raise UsageError("--code is twelve letters and digits such as 7K3M-9QPD-X2FW; a token goes in by --token-stdin")
    return found.text()
