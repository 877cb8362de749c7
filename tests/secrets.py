"""Planted secrets: things that must never leave a payload, and where to put them.

`planted_secrets` makes them at run time from a fixed seed, so that no line of this repository looks like a key;
`plant` puts one into every string of a payload that is not kept by name; `traces` says what to search for in a
database, a log or on the wire. The same arguments give the same secrets for ever.
"""

from __future__ import annotations

import base64
import random
import re
import string
from collections.abc import Callable, Iterator
from typing import TypeAlias

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
Path: TypeAlias = tuple[str | int, ...]

KEPT_FIELDS = frozenset(
    (
        "session_id",
        "conversation_id",
        "tool_use_id",
        "tool_name",
        "agent_id",
        "agent_type",
        "model",
        "tool_input.subagent_type",
        "tool_response.agentId",
        "tool_response.resolvedModel",
    )
)
"""The strings of a payload that are kept as they are: opaque ids and names. Positions in lists are left out."""

_SEED = 20260105
_ALNUM = string.ascii_letters + string.digits
_UPPER = string.ascii_uppercase + string.digits
_HEX = "0123456789abcdef"
_TRACE_CHARS_MIN = 8
_run = re.compile(r"[A-Za-z0-9_-]{8,}")


def planted_secrets(n: int = 200) -> list[tuple[str, str]]:
    """Return `n` different secrets as (kind, text), all kinds in turn."""
    rnd = random.Random(_SEED)
    kinds = list(_KINDS)
    return [(kinds[i % len(kinds)], _KINDS[kinds[i % len(kinds)]](rnd)) for i in range(n)]


def kinds() -> list[str]:
    """Return the names of all kinds."""
    return list(_KINDS)


def traces(secret: str) -> list[str]:
    """Return the pieces of a secret that give it away: its random words, whatever escapes the newlines around them."""
    found = [word for word in _run.findall(secret) if any(c.isdigit() for c in word)]
    assert found, f"this secret has no word of {_TRACE_CHARS_MIN} characters to search for"
    return found


def plant(payload: dict[str, Json], secret: str, keep: frozenset[str] = KEPT_FIELDS) -> Iterator[dict[str, Json]]:
    """Yield variants of `payload` with the secret in its strings, except those that `keep` names.

    First in all of them at once and in a field that nobody knows, then in each alone: in place of the text, behind
    it and in front of it.
    """
    places = [path for path in _strings(payload, ()) if _name(path) not in keep]
    everywhere: Json = payload
    for path in places:
        everywhere = _put(everywhere, path, lambda _: secret)
    assert isinstance(everywhere, dict)
    yield {**everywhere, "a_field_of_a_later_version": secret}
    for path in places:
        for change in (lambda _: secret, lambda old: f"{old} {secret}", lambda old: f"{secret} {old}"):
            changed = _put(payload, path, change)
            assert isinstance(changed, dict)
            yield changed


def _strings(value: Json, path: Path) -> Iterator[Path]:
    if isinstance(value, str):
        yield path
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _strings(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _strings(item, (*path, index))


def _name(path: Path) -> str:
    return ".".join(part for part in path if isinstance(part, str))


def _put(value: Json, path: Path, change: Callable[[str], str]) -> Json:
    """Return `value` with the string at `path` changed; the rest is shared, nothing is copied needlessly."""
    if not path:
        assert isinstance(value, str)
        return change(value)
    part, rest = path[0], path[1:]
    if isinstance(value, dict):
        assert isinstance(part, str)
        return {**value, part: _put(value[part], rest, change)}
    assert isinstance(value, list)
    assert isinstance(part, int)
    return [*value[:part], _put(value[part], rest, change), *value[part + 1 :]]


def _some(rnd: random.Random, alphabet: str, length: int) -> str:
    # A digit inside, so that `traces` takes every random word for one.
    text = "".join(rnd.choices(alphabet, k=length))
    middle = length // 2
    return f"{text[:middle]}7{text[middle + 1 :]}"


def _block(rnd: random.Random, label: str, lines: int) -> str:
    body = "\n".join(_some(rnd, _ALNUM + "+/", 64) for _ in range(lines))
    return f"-----BEGIN {label}-----\n{body}\n-----END {label}-----\n"


def _jwt(rnd: random.Random) -> str:
    head = base64.urlsafe_b64encode(b'{"alg":"HS256","typ":"JWT"}').decode().rstrip("=")
    return f"{head}.{_some(rnd, _ALNUM, 60)}.{_some(rnd, _ALNUM + '_-', 43)}"


_KINDS: dict[str, Callable[[random.Random], str]] = {
    "aws_access_key": lambda r: "AKIA" + _some(r, _UPPER, 16),
    "aws_secret_key": lambda r: "aws_secret_access_key=" + _some(r, _ALNUM, 40),
    "github_token": lambda r: "ghp_" + _some(r, _ALNUM, 36),
    "github_fine_grained": lambda r: f"github_pat_{_some(r, _ALNUM, 22)}_{_some(r, _ALNUM, 59)}",
    "gitlab_token": lambda r: "glpat-" + _some(r, _ALNUM, 20),
    "slack_token": lambda r: f"xoxb-{_some(r, string.digits, 12)}-{_some(r, _ALNUM, 24)}",
    "slack_webhook": lambda r: (
        f"https://hooks.slack.com/services/T{_some(r, _UPPER, 8)}/B{_some(r, _UPPER, 8)}/{_some(r, _ALNUM, 24)}"
    ),
    "stripe_key": lambda r: "sk_live_" + _some(r, _ALNUM, 24),
    "google_api_key": lambda r: "AIza" + _some(r, _ALNUM, 35),
    "google_oauth": lambda r: f"GOCSPX-{_some(r, _ALNUM, 28)}",
    "openai_key": lambda r: "sk-proj-" + _some(r, _ALNUM, 48),
    "anthropic_key": lambda r: "sk-ant-api03-" + _some(r, _ALNUM, 80),
    "huggingface_token": lambda r: "hf_" + _some(r, _ALNUM, 34),
    "npm_token": lambda r: "npm_" + _some(r, _ALNUM, 36),
    "pypi_token": lambda r: "pypi-AgEIcHlwaS5vcmc" + _some(r, _ALNUM, 70),
    "jwt": _jwt,
    "rsa_private_key": lambda r: _block(r, "RSA PRIVATE KEY", 6),
    "openssh_private_key": lambda r: _block(r, "OPENSSH PRIVATE KEY", 4),
    "pgp_private_key": lambda r: _block(r, "PGP PRIVATE KEY BLOCK", 4),
    "password_in_url": lambda r: f"https://deploy:{_some(r, _ALNUM, 14)}@git.corp.example/team/app.git",
    "database_url": lambda r: f"postgres://app:{_some(r, _ALNUM, 16)}@db-{_some(r, _HEX, 8)}.internal:5432/billing",
    "basic_auth": lambda r: "Authorization: Basic " + _some(r, _ALNUM, 32),
    "bearer": lambda r: "Authorization: Bearer " + _some(r, _ALNUM, 40),
    "cookie": lambda r: f"Cookie: sessionid={_some(r, _HEX, 32)}; theme=dark",
    "password": lambda r: f"password = '{_some(r, _ALNUM, 12)}!'",
    "env_assignment": lambda r: f"DB_PASSWORD={_some(r, _ALNUM, 18)}",
    "azure_storage": lambda r: f"DefaultEndpointsProtocol=https;AccountName=acct;AccountKey={_some(r, _ALNUM, 86)}==",
    "sendgrid_key": lambda r: f"SG.{_some(r, _ALNUM, 22)}.{_some(r, _ALNUM, 43)}",
    "twilio_sid": lambda r: "AC" + _some(r, _HEX, 32),
    "telegram_bot": lambda r: f"{_some(r, string.digits, 10)}:AA{_some(r, _ALNUM, 33)}",
    "email": lambda r: f"jane.{_some(r, _HEX, 10)}@customer.example",
    "phone": lambda r: f"+49-151-{_some(r, string.digits, 8)}",
    "credit_card": lambda r: "4" + _some(r, string.digits, 15),
    "iban": lambda r: "DE" + _some(r, string.digits, 20),
    "private_path": lambda r: f"/home/jane/merger-{_some(r, _HEX, 10)}/offer.docx",
    "program_name": lambda r: f"./deploy-{_some(r, _HEX, 10)}.sh --now",
    "file_name": lambda r: f"/srv/notes.{_some(r, _HEX, 10)}",
}
