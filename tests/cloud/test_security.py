"""The cloud's security controls, each as a test named after what it answers in OWASP ASVS 5.0.

The table in docs/security.md lists them with the tests elsewhere that belong to the same control; tests/core/
test_security_table.py holds the two together.
"""

from __future__ import annotations

import ast
import asyncio
import hashlib
import hmac
import inspect
import io
import json
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from metricsd.cloud import codes
from metricsd.cloud.access import Scope
from metricsd.cloud.auth import SECRET_BYTES, digest_of, new_token
from metricsd.cloud.tenants import revoke_token
from metricsd.config import Cloud
from metricsd.errors import UsageError
from tests.cloud.support import CloudUnderTest, Json, bearer, event, events, ok, problem, statuses
from tests.cloud.test_audit import (
    test_a_changed_removed_or_reordered_row_is_found as test_v16_4_2_a_changed_audit_row_is_found,
)
from tests.cloud.test_audit import (
    test_every_act_is_logged_with_who_did_it as test_v16_3_2_every_act_is_logged_with_who_did_it,
)
from tests.cloud.test_limits import (
    small,
)
from tests.cloud.test_limits import (
    test_the_body_as_received as test_v5_2_1_a_body_is_bounded_as_received,
)
from tests.cloud.test_limits import (
    test_the_body_inflated as test_v5_2_3_a_body_is_bounded_once_inflated,
)
from tests.cloud.test_postgres_isolation import connected
from tests.cloud.test_rates import (
    test_a_tenant_that_asks_too_much_gets_429_and_others_do_not as test_v2_4_1_what_is_asked_in_a_minute_is_bounded,
)

__all__ = [
    "small",
    "test_v2_4_1_what_is_asked_in_a_minute_is_bounded",
    "test_v5_2_1_a_body_is_bounded_as_received",
    "test_v5_2_3_a_body_is_bounded_once_inflated",
    "test_v16_3_2_every_act_is_logged_with_who_did_it",
    "test_v16_4_2_a_changed_audit_row_is_found",
]

CODE = Path(__file__).resolve().parents[2] / "metricsd"
SQL_CALLS = frozenset({"execute", "executemany", "executescript", "fetch", "fetchrow", "fetchval"})
WHO_MAY = {
    "capabilities": set(Scope),
    "devices": {Scope.ENROL, Scope.DEVICE},
    "have": {Scope.DEVICE},
    "hello": {Scope.DEVICE},
    "events": {Scope.DEVICE},
    "records": {Scope.DEVICE},
    "changes": {Scope.DEVICE, Scope.READ, Scope.ADMIN},
    "changes/stream": {Scope.DEVICE},
    "policy": {Scope.DEVICE, Scope.READ, Scope.ADMIN},
    "devices/{device_id}/data": {Scope.DEVICE, Scope.ADMIN},
}
"""Which scopes each route of the protocol is for: everything else is refused."""


async def described(cloud: CloudUnderTest) -> list[tuple[str, str, bool]]:
    """Return (method, path, whether it needs a token) of every operation in the API's description."""
    document = (await cloud.http.get("/schema/openapi.json")).json()
    return [
        (method.upper(), path, operation.get("security") != [])
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    ]


# S1: tenants are apart.


async def test_v8_2_2_the_tenant_comes_from_the_token_alone(cloud: CloudUnderTest) -> None:
    """Whatever a body, a query or a header says of tenants, users and devices, the token decides."""
    mine, other = await cloud.device(), await cloud.device(tenant="other")
    foreign = {"tenant": "other", "user": "bob", "tenant_id": "x", "device": other.id}
    body = {"device_id": mine.id, "epoch": 1, "base_seq": 0, "events": [event(1, **foreign)], **foreign}
    reply = await cloud.http.post(
        "/sync/v1/events?tenant=other&device_id=" + other.id,
        json=body,
        headers={**bearer(mine.token), "x-tenant": "other", "x-forwarded-user": "bob"},
    )
    assert ok(reply)["acked_through"] == 1
    assert (await other.hello())["last_seq"] == 0
    assert await other.feed() == []


async def test_v8_4_1_ids_of_another_tenant_are_answered_like_ids_of_nobody(cloud: CloudUnderTest) -> None:
    """Status, code and body are the same, so that an answer tells nothing about who exists."""
    mine, other = await cloud.device(), await cloud.device(tenant="other")
    admin = await cloud.token(Scope.ADMIN)
    answers = []
    for device_id in (other.id, "f" * 32):
        erased = await cloud.http.delete(f"/sync/v1/devices/{device_id}/data", headers=bearer(admin))
        spoken = await cloud.post("/hello", {"device_id": device_id, "epoch": 1, "acked_seq": 0}, mine.token)
        answers.append((erased.status_code, erased.text, spoken.status_code, spoken.text))
    assert answers[0] == answers[1]
    assert (await other.hello())["last_seq"] == 0


# S2: no text of a user becomes SQL.


def test_v1_2_4_no_statement_is_made_of_anything_but_constants() -> None:
    """Every statement is a text, or made of constants, question marks and names that we generated; values are bound.

    In the PostgreSQL files generated identifiers pass through the functions of pg_names, which
    tests/cloud/test_postgres_isolation.py holds to that.
    """
    suspicious = [
        f"{file.name}:{call.lineno}: {ast.unparse(call.args[0])[:80]}"
        for folder in ("cloud", "store")
        for file in sorted((CODE / folder).glob("*.py"))
        for call in ast.walk(ast.parse(file.read_text()))
        if isinstance(call, ast.Call) and _runs_sql(call) and not _is_fixed(call.args[0])
    ]
    assert suspicious == []


def _runs_sql(call: ast.Call) -> bool:
    return isinstance(call.func, ast.Attribute) and call.func.attr in SQL_CALLS and bool(call.args)


def _is_fixed(node: ast.expr) -> bool:
    """Return whether a statement's text cannot hold what a user wrote."""
    match node:
        case ast.Constant(value=str()):
            return True
        case ast.Name() | ast.Attribute():
            # A text that was made elsewhere: ruff's S608 looks at how.
            return True
        case ast.BinOp(op=ast.Add(), left=left, right=right):
            return _is_fixed(left) and _is_fixed(right)
        case ast.IfExp(body=one, orelse=other):
            return _is_fixed(one) and _is_fixed(other)
        case ast.JoinedStr(values=parts):
            return all(_is_safe_part(part) for part in parts)
        case ast.Call(func=ast.Attribute(attr="format", value=template), args=values, keywords=named):
            return _is_fixed(template) and all(map(_is_safe, [*values, *(keyword.value for keyword in named)]))
        case ast.Subscript(value=table):
            return _is_fixed(table)
        case _:
            return False


GENERATED = frozenset(
    {
        *("marks", "wait_ms", "milliseconds", "pages", "part"),
        *("table", "names", "verb", "where", "right", "kind"),
        *("name", "schema", "ingest", "quoted", "role"),
    }
)
"""Question marks and numbers; tables and columns of our own schema; identifiers that pg_names or quote_ident made."""


def _is_safe_part(part: ast.expr) -> bool:
    return _is_safe(part.value) if isinstance(part, ast.FormattedValue) else True


def _is_safe(value: ast.expr) -> bool:
    """Return whether a value may be put into a statement's text."""
    match value:
        case ast.Call(func=ast.Name(id=made_by)) | ast.Call(func=ast.Attribute(attr=made_by)):
            return made_by in {"role", "schema_of", "join", "int", "max", "format"}
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name in GENERATED or name.endswith("_sql") or name.lstrip("_").isupper()
        case ast.IfExp(body=one, orelse=other):
            return _is_safe(one) and _is_safe(other)
        case ast.Constant():
            return True
        case _:
            return False


HOSTILE_NAMES = st.text(min_size=1, max_size=40) | st.sampled_from(
    ["'; DROP TABLE token; --", '"; SELECT 1; --', "a' OR '1'='1", "%s%n{0}${x}", "../../etc/passwd", "\\'; --", "a\\"]
)


@given(HOSTILE_NAMES, HOSTILE_NAMES)
@settings(max_examples=25)
async def test_v1_2_4_hostile_names_are_stored_as_they_are_or_refused(
    tmp_path_factory: pytest.TempPathFactory, user: str, device: str
) -> None:
    """Names of users and devices and everything in events come back letter by letter; tables stay."""
    async with CloudUnderTest(tmp_path_factory.mktemp("cloud")) as cloud:
        try:
            made = await cloud.device(user=user, name=device)
        except (UsageError, AssertionError):
            return
        reader = await cloud.device(user=user)
        pushed = event(1, tool=user, call=device, session=user)
        if statuses((await made.push([pushed]))["results"]) == ["stored"]:
            [item] = await reader.feed()
            assert item["event"] == pushed
        assert {token.user for token in await cloud.backend.directory.list_tokens("acme")} == {user}


# S3: what a request leaves in a shared connection.


async def test_v15_4_1_a_cancelled_request_leaves_nothing_for_the_next(cloud: CloudUnderTest) -> None:
    """Requests of one tenant are cut at any moment, in turn with another tenant's, which are whole and its own."""
    mine, other = await cloud.device(), await cloud.device(tenant="other")
    seq = 0
    for number in range(40):
        cut = asyncio.create_task(mine.try_push(events(20, first=seq + 1), base_seq=seq))
        for _ in range(number % 14):
            await asyncio.sleep(0)
        cut.cancel()
        told = await other.hello()
        assert told["last_seq"] == number
        assert (await other.push([event(number + 1)], base_seq=number))["acked_through"] == number + 1
        await asyncio.gather(cut, return_exceptions=True)
        seq = (await mine.hello())["last_seq"]
        assert seq % 20 == 0
    assert all(item["device"] != mine.id for item in await (await cloud.device(tenant="other")).feed())


# S4: tokens.


def test_v11_5_1_a_token_has_256_random_bits() -> None:
    """From the system's generator, and no two are alike."""
    assert SECRET_BYTES * 8 == 256
    assert "secrets.token_urlsafe(SECRET_BYTES)" in inspect.getsource(new_token)
    made = {new_token(Scope.DEVICE) for _ in range(1000)}
    assert len(made) == 1000 and {len(text) for text in made} == {4 + 43}


async def test_v13_3_4_a_dump_of_the_databases_holds_no_token(cloud: CloudUnderTest) -> None:
    """Only hashes: not the text, not its random part, not its bytes."""
    device = await cloud.device()
    secrets = [device.token, *[await cloud.token(scope) for scope in (Scope.ENROL, Scope.READ, Scope.ADMIN)]]
    await device.push(events(3))
    held = await dump(cloud)
    for text in secrets:
        assert digest_of(text) in held
        assert text.encode() not in held and text[4:].encode() not in held


async def dump(cloud: CloudUnderTest) -> bytes:
    """Return all bytes of the database: SQLite's files, or what every table of PostgreSQL holds."""
    if isinstance(cloud.place, Path):
        return b"".join(file.read_bytes() for file in cloud.folder.iterdir())
    held = b""
    async with connected(cloud.place) as db:
        tables = await db.fetch(
            "SELECT quote_ident(schemaname) || '.' || quote_ident(tablename) FROM pg_tables"
            " WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"
        )
        for (table,) in tables:
            for row in await db.fetch(f"SELECT * FROM {table}"):
                held += b"\n".join(value if isinstance(value, bytes) else str(value).encode() for value in row)
    return held


def test_v6_5_2_a_plain_hash_is_for_what_nobody_can_guess() -> None:
    """Tokens have more than 112 random bits and lie under SHA-256; codes are short, and lie under a slow, salted hash."""
    text = new_token(Scope.DEVICE)
    assert SECRET_BYTES * 8 >= 112 and digest_of(text) == hashlib.sha256(text.encode()).digest()
    code = codes.new_code()
    digests = {codes.digest_of(code.secret, salt) for salt in (codes.new_salt(), codes.new_salt())}
    assert len(digests) == 2 and hashlib.sha256(code.secret.encode()).digest() not in digests
    began = time.process_time()
    codes.digest_of(code.secret, codes.new_salt())
    slow = time.process_time() - began
    began = time.process_time()
    for _ in range(1000):
        digest_of(text)
    assert slow > time.process_time() - began, "a guess at a code costs more than a thousand at a token"


async def test_v11_2_4_hashes_are_compared_in_constant_time(
    cloud: CloudUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole, and by the function that is made for it: tokens on both databases, and codes."""
    compared: list[tuple[bytes, bytes]] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((bytes(one), bytes(other)))
        return bytes(one) == bytes(other)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    token = digest_of((await cloud.device()).token)
    compared.clear()
    assert await cloud.backend.directory.find_token(token[:8] + bytes(24)) is None
    assert compared == [(token, token[:8] + bytes(24))]
    compared.clear()
    code, salt = codes.new_code(), codes.new_salt()
    digest = codes.digest_of(code.secret, salt)
    assert codes.is_match(code.secret, salt, digest) and not codes.is_match(code.secret + "x", salt, digest)
    assert [len(one) == len(other) == len(digest) for one, other in compared] == [True, True]


async def test_v7_4_1_a_revoked_or_expired_token_opens_nothing(cloud: CloudUnderTest) -> None:
    """On every operation at once, and with the same answer as a token that never was."""
    device = await cloud.device()
    never = new_token(Scope.DEVICE)
    [row] = [token for token in await cloud.backend.directory.list_tokens("acme") if token.device == device.id]
    assert (await device.hello())["last_seq"] == 0
    assert await cloud.backend.directory.find_token_by_id(row.id) is not None
    await revoke_token(cloud.backend.directory, row.id, cloud.clock, actor="test")
    for method, path, locked in await described(cloud):
        if locked:
            path = path.replace("{device_id}", device.id)
            answers = [await cloud.http.request(method, path, headers=bearer(text)) for text in (device.token, never)]
            assert [problem(answer) for answer in answers] == [(401, "bad_token")] * 2, path
            assert answers[0].text == answers[1].text


# S5: nothing in that we did not ask for, nothing out that was not pushed.

CLAIMS = st.dictionaries(
    st.sampled_from(["change", "user", "tenant", "device", "epoch", "received_at", "rev", "nonce"]),
    st.integers(-5, 5) | st.text(max_size=8),
    max_size=4,
)


@given(CLAIMS)
@settings(max_examples=20)
async def test_v15_3_3_fields_that_are_not_the_clients_are_ignored(
    tmp_path_factory: pytest.TempPathFactory, extra: dict[str, Any]
) -> None:
    """Change number, owner, device and revision are the cloud's own, whatever an event or record claims."""
    async with CloudUnderTest(tmp_path_factory.mktemp("cloud")) as cloud:
        device, reader = await cloud.device(), await cloud.device()
        await device.push([event(1, **extra)])
        [applied] = await device.put(
            {**extra, "type": "session", "id": "a", "fields": {"description": "x"}, "stamps": {}}
        )
        one, two = await reader.feed()
        assert one["device"] == two["device"] == device.id
        assert set(one["event"]) <= {"id", "at", "kind", "name", "app", "seq"}
        assert two["record"]["rev"] == applied["rev"] and applied["rev"].startswith("2-")


async def test_v15_3_1_answers_hold_the_described_fields_alone(cloud: CloudUnderTest) -> None:
    """No internal number, no key, no hash, no name of another user or device."""
    device, reader = await cloud.device(), await cloud.device(user="bob")
    await device.push(events(2))
    document = (await cloud.http.get("/schema/openapi.json")).json()["components"]["schemas"]
    replies: list[tuple[str, Json]] = [
        ("HelloReply", await device.hello()),
        ("PushEventsReply", await device.push(events(1, first=3), base_seq=2)),
        ("ChangesReply", await reader.changes()),
        ("Capabilities", ok(await cloud.get("/capabilities", device.token))),
    ]
    for schema, reply in replies:
        assert set(reply) <= set(document[schema]["properties"])
        assert "ann" not in json.dumps(reply)


# S6: every bound has a name.


async def test_v15_2_2_a_refusal_names_its_limit_and_when_to_come_back(tmp_path: Path) -> None:
    """For each limit of a request; all of them are in docs/operations.md."""
    tight = Cloud(
        body_bytes_max=4096,
        inflated_bytes_max=8192,
        items_max=4,
        depth_max=8,
        tenant_requests_per_minute=12,
        page_max=3,
    )
    async with CloudUnderTest(tmp_path / "cloud", tight) as cloud:
        device = await cloud.device()
        packed = {**bearer(device.token), "content-encoding": "zstd"}
        whole = json.dumps({"device_id": device.id, "epoch": 1, "base_seq": 0, "events": []}).encode()[:-1]
        bodies: list[tuple[bytes, dict[str, str]]] = [
            (b" " * 5000, bearer(device.token)),
            (zstandard.compress(b" " * 9000), packed),
            (json.dumps({"device_id": device.id, "epoch": 1, "base_seq": 0, "events": events(5)}).encode(), bearer(device.token)),
            (whole + b',"later":' + b"[" * 20 + b"]" * 20 + b"}", bearer(device.token)),
            (whole + b',"later":[' + b"1," * 300 + b"1]}", bearer(device.token)),
        ]  # fmt: skip
        seen = []
        for body, headers in bodies:
            reply = await cloud.http.post("/sync/v1/events", content=body, headers=headers)
            seen.append((reply.status_code, reply.json()["limit"]))
        refused = [await cloud.get("/changes?limit=0", device.token)]
        while refused[-1].status_code != 429:
            refused.append(await cloud.get("/changes", device.token))
        seen += [(reply.status_code, reply.json()["limit"]) for reply in (refused[0], refused[-1])]
        assert int(refused[-1].headers["retry-after"]) > 0
    assert seen == [
        (413, "body_bytes_max"),
        (413, "inflated_bytes_max"),
        (413, "items_max"),
        (400, "depth_max"),
        (413, "values_max"),
        (400, "page_max"),
        (429, "tenant_requests_per_minute"),
    ]
    text = (CODE.parent / "docs" / "operations.md").read_text()
    assert [name for _, name in seen if f"`{name}`" not in text] == []


async def test_v1_5_3_one_parser_reads_what_a_key_says_twice(cloud: CloudUnderTest) -> None:
    """The last one counts, in every place and on every way through, so no two parts can differ; NaN is no JSON."""
    device, reader = await cloud.device(), await cloud.device()
    text = json.dumps(event(1, tool="Read"))[:-1] + ',"tool":"Bash"}'
    body = f'{{"device_id":"x","device_id":"{device.id}","epoch":1,"base_seq":0,"events":[{text}]}}'
    reply = await cloud.http.post("/sync/v1/events", content=body.encode(), headers=bearer(device.token))
    assert ok(reply)["acked_through"] == 1
    assert (await reader.feed())[0]["event"]["tool"] == "Bash"
    for wrong in ("NaN", "Infinity", "-Infinity", "1e999", "12345678901234567890123"):
        sent = body.replace('"base_seq":0', f'"base_seq":{wrong}')
        reply = await cloud.http.post("/sync/v1/events", content=sent.encode(), headers=bearer(device.token))
        assert reply.status_code == 400, wrong


# S7: who may do what.


@pytest.mark.parametrize("scope", list(Scope))
async def test_v8_2_1_every_route_is_open_to_its_scopes_alone(cloud: CloudUnderTest, scope: Scope) -> None:
    """The whole matrix of scopes and operations: 403 `wrong_scope` everywhere else, and no route is forgotten."""
    device = await cloud.device()
    token = device.token if scope is Scope.DEVICE else await cloud.token(scope)
    for method, path, locked in await described(cloud):
        if not locked:
            continue
        name = path.removeprefix("/sync/v1/")
        if name == "changes/stream" and scope in WHO_MAY[name]:
            continue  # it never ends
        # A device that does not exist: where the scope is right, nothing happens.
        reply = await cloud.http.request(method, path.replace("{device_id}", "e" * 32), headers=bearer(token))
        refused = reply.status_code == 403 and reply.json()["code"] == "wrong_scope"
        assert refused == (scope not in WHO_MAY[name]), (path, reply.text)


# S10, S11: a web page on a laptop can do nothing with a cloud, wherever it runs.


async def test_v3_4_2_no_answer_invites_another_origin(cloud: CloudUnderTest) -> None:
    """No CORS header and no cookie on any operation, with and without a token, preflight requests included."""
    device = await cloud.device()
    for method, path, _ in await described(cloud):
        if path.endswith("/stream"):
            continue
        for headers in ({}, bearer(device.token)):
            for asked in (method, "OPTIONS"):
                reply = await cloud.http.request(
                    asked,
                    path,
                    headers={**headers, "origin": "https://attacker.example", "access-control-request-method": method},
                )
                names = {name.lower() for name in reply.headers}
                assert not any(name.startswith("access-control-") for name in names), path
                assert "set-cookie" not in names
                assert reply.headers["x-content-type-options"] == "nosniff"
                assert reply.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"])
async def test_v3_5_2_a_request_that_a_page_can_send_changes_nothing(cloud: CloudUnderTest, kind: str) -> None:
    """A browser adds cookies and what it calls simple headers, never our Authorization: 401 on everything."""
    device = await cloud.device()
    body = json.dumps({"device_id": device.id, "epoch": 1, "base_seq": 0, "events": events(1)}).encode()
    for method, path, locked in await described(cloud):
        if locked:
            reply = await cloud.http.request(
                method, path, content=body, headers={"content-type": kind, "cookie": f"token={device.token}"}
            )
            assert reply.status_code == 401
    reply = await cloud.http.post(f"/sync/v1/events?token={device.token}&access_token={device.token}", content=body)
    assert problem(reply) == (401, "no_token")
    assert (await device.hello())["last_seq"] == 0


@pytest.mark.only_sqlite
async def test_v3_5_1_reading_changes_nothing(cloud: CloudUnderTest) -> None:
    """No GET writes a byte of a tenant's data or of the directory."""
    device = await cloud.device()
    await device.push(events(3))
    before = _contents(cloud.folder)
    for method, path, locked in await described(cloud):
        if method == "GET" and not path.endswith("/stream"):
            for _ in range(2):
                await cloud.http.get(path, headers=bearer(device.token) if locked else {})
    assert _contents(cloud.folder) == before


def _contents(folder: Path) -> dict[str, list[str]]:
    """Return every row of every table, except the minute's sums of requests."""
    found = {}
    for file in sorted(folder.glob("*.db")):
        if file.name != "rate.db":
            db = sqlite3.connect(file)
            found[file.name] = list(db.iterdump())
            db.close()
    return found


# S15: what is logged.


@pytest.fixture
def logged() -> Iterator[io.StringIO]:
    """What the cloud logs, as JSON lines."""
    written = io.StringIO()
    structlog.configure(
        processors=[structlog.processors.format_exc_info, structlog.processors.JSONRenderer()],
        logger_factory=structlog.WriteLoggerFactory(written),
        cache_logger_on_first_use=False,
    )
    yield written


async def test_v16_2_5_a_fault_is_logged_without_what_was_sent(
    cloud: CloudUnderTest, logged: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the token nor a byte of the body is in the log or in the answer."""
    device = await cloud.device()

    async def broken(_: bytes) -> None:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(cloud.backend.directory, "find_token", broken)
    body = {"device_id": device.id, "events": [event(1, session="canary-in-the-body")]}
    reply = await cloud.post("/events", body, device.token)
    assert problem(reply) == (500, "internal")
    assert "a fault of ours" in logged.getvalue()
    for text in (device.token, device.token[4:], "canary-in-the-body"):
        assert text not in logged.getvalue() and text not in reply.text
    assert "a fault of ours" not in reply.text


async def test_v16_4_1_a_log_line_cannot_be_forged(
    cloud: CloudUnderTest, logged: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Newlines and escape codes in a path stay inside the one JSON line that tells of it."""

    async def broken() -> None:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(cloud.backend.directory, "ready", broken)
    await cloud.http.get("/readyz%0A%7B%22event%22%3A%22forged%22%7D")
    await cloud.http.get("/readyz", headers={"user-agent": 'x\t{"event":"forged"}'})
    lines = logged.getvalue().splitlines()
    assert len(lines) == 1
    assert [json.loads(line)["event"] for line in lines] == ["cloud.failed"]


# S17: whatever fails, nobody gets in.


@pytest.mark.parametrize(
    "error", [sqlite3.OperationalError("locked"), RuntimeError("a bug"), TimeoutError(), KeyError("x")]
)
async def test_v16_5_3_a_fault_while_a_token_is_looked_up_opens_nothing(
    cloud: CloudUnderTest, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """On every operation the answer is a 5xx problem, and nothing was stored."""
    device = await cloud.device()

    async def broken(_: bytes) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(cloud.backend.directory, "find_token", broken)
        for method, path, locked in await described(cloud):
            if locked:
                reply = await cloud.http.request(
                    method, path.replace("{device_id}", device.id), json={}, headers=bearer(device.token)
                )
                assert problem(reply)[0] in (500, 503), path
    assert (await device.hello())["last_seq"] == 0


@pytest.mark.parametrize("part", ["spend", "stored_bytes"])
async def test_v16_5_2_a_fault_of_the_limits_lets_nothing_through(
    cloud: CloudUnderTest, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """Without its sums the cloud would not know who asks too much: it refuses, and works again when they are back."""
    device = await cloud.device()

    async def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    cloud.clock.advance(61)  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:
        patch.setattr(cloud.backend.meter, part, broken)
        assert problem(await device.try_push(events(1)))[0] == 500
    assert ok(await device.try_push(events(1)))["acked_through"] == 1


async def test_v16_5_3_a_token_that_is_none_opens_nothing(cloud: CloudUnderTest) -> None:
    """Empty, of another kind, twice, in other words, with blanks or in another alphabet: 401."""
    device = await cloud.device()
    wrong: list[list[tuple[str, str]]] = [
        [],
        [("authorization", "")],
        [("authorization", "Bearer")],
        [("authorization", "Bearer ")],
        [("authorization", f"Basic {device.token}")],
        [("authorization", device.token)],
        [("authorization", f"Bearer {device.token} x")],
        [("authorization", f"Bearer {device.token}\t")],
        [("authorization", f"Bearer {device.token.upper()}")],
        [("authorization", f"Bearer {device.token[:-1]}")],
        [("authorization", "Bearer nobody"), ("authorization", f"Bearer {device.token}")],
        [("x-authorization", f"Bearer {device.token}")],
    ]
    for headers in wrong:
        reply = await cloud.http.get("/sync/v1/changes", headers=httpx.Headers(headers))
        assert reply.status_code == 401, headers


async def test_v16_5_2_a_database_that_cannot_be_used_is_not_an_open_door(cloud: CloudUnderTest) -> None:
    """A tenant whose store cannot be opened gets 503, and nobody else's is opened in its place."""
    device = await cloud.device()

    class Shut:
        async def __aenter__(self) -> None:
            raise sqlite3.OperationalError("disk I/O error")

        async def __aexit__(self, *_: object) -> None:
            return None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cloud.backend, "tenant", lambda _: Shut())
        for reply in (await device.try_push(events(1)), await device.try_changes()):
            assert problem(reply)[0] in (500, 503)
    assert (await device.hello())["last_seq"] == 0
