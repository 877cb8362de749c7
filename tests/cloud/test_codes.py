"""Enrolment codes: typed once by a person, bounded in guesses and time, worth nothing afterwards."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metricsd.cloud import codes
from metricsd.cloud.codes import ALPHABET, ATTEMPTS_MAX, Code, new_code, parse_code
from metricsd.cloud.enrolment import create_code
from metricsd.cloud.tenants import revoke_user, suspend_tenant
from metricsd.errors import UsageError
from tests.cloud.support import CloudUnderTest, ok, problem
from tests.fakes import FakeClock

LIFE_S = 600


async def code_for(cloud: CloudUnderTest, user: str = "ann", life_s: int = LIFE_S) -> str:
    text, _ = await create_code(cloud.backend.directory, "acme", user, life_s, cloud.clock, actor="test")
    return text


async def use(cloud: CloudUnderTest, text: str, name: str = "laptop") -> httpx.Response:
    return await cloud.post("/devices", {"name": name}, text)


def wrong(text: str) -> str:
    """Return a code of the same name with another secret."""
    return text[:-1] + ("0" if text[-1] != "0" else "1")


async def test_a_code_makes_one_device_of_its_user(cloud: CloudUnderTest) -> None:
    """However it is typed; a second use is refused like a code that never was."""
    await cloud.tenant()
    text = await code_for(cloud)
    reply = ok(await use(cloud, text.lower().replace("-", "")))
    assert (reply["tenant"], reply["user"]) == ("acme", "ann") and reply["device_token"].startswith("mdd_")
    again, never = await use(cloud, text), await use(cloud, new_code().text())
    assert problem(again) == (401, "bad_token") and again.text == never.text


async def test_guesses_at_a_code_are_bounded(cloud: CloudUnderTest) -> None:
    """After five wrong ones the right one does not count either; one fewer leaves it good."""
    await cloud.tenant()
    lucky, dead = await code_for(cloud), await code_for(cloud, "bob")
    for _ in range(ATTEMPTS_MAX - 1):
        assert problem(await use(cloud, wrong(lucky))) == (401, "bad_token")
    ok(await use(cloud, lucky))
    for _ in range(ATTEMPTS_MAX):
        assert problem(await use(cloud, wrong(dead))) == (401, "bad_token")
    assert problem(await use(cloud, dead)) == (401, "bad_token")


async def test_guesses_in_parallel_are_bounded_all_the_same(cloud: CloudUnderTest) -> None:
    """The attempt is taken before the secret is compared."""
    await cloud.tenant()
    text = await code_for(cloud)
    tried = await asyncio.gather(*(cloud.backend.directory.try_code(text[:4], cloud.clock.now_us()) for _ in range(20)))
    assert sum(code is not None for code in tried) == ATTEMPTS_MAX


async def test_a_code_used_twice_at_once_makes_one_device(cloud: CloudUnderTest) -> None:
    """It is spent in the transaction that makes the device."""
    await cloud.tenant()
    text = await code_for(cloud)
    replies = await asyncio.gather(*(use(cloud, text) for _ in range(ATTEMPTS_MAX)))
    assert sorted(reply.status_code for reply in replies) == [200] + [401] * (ATTEMPTS_MAX - 1)
    assert len(await cloud.backend.directory.list_devices("acme")) == 1


async def test_a_code_ends_with_its_time(cloud: CloudUnderTest, clock: FakeClock) -> None:
    """To the microsecond."""
    await cloud.tenant()
    early, late = await code_for(cloud), await code_for(cloud)
    clock.advance(LIFE_S - 0.000_001)
    ok(await use(cloud, early))
    clock.advance(0.000_001)
    assert problem(await use(cloud, late)) == (401, "bad_token")


async def test_a_code_ends_with_its_user_and_rests_with_its_tenant(cloud: CloudUnderTest) -> None:
    """Whoever was shut out does not come back by a code from before."""
    await cloud.tenant()
    directory = cloud.backend.directory
    text, bobs = await code_for(cloud), await code_for(cloud, "bob")
    await revoke_user(directory, "acme", "ann", cloud.clock, actor="test")
    assert problem(await use(cloud, text)) == (401, "bad_token")
    await suspend_tenant(directory, "acme", cloud.clock, actor="test")
    assert problem(await use(cloud, bobs)) == (403, "tenant_suspended")


async def test_an_unfit_name_does_not_spend_the_code(cloud: CloudUnderTest) -> None:
    """It takes an attempt and no more."""
    await cloud.tenant()
    text = await code_for(cloud)
    assert problem(await use(cloud, text, name="")) == (400, "bad_name")
    ok(await use(cloud, text))


@pytest.mark.only_sqlite
async def test_a_fault_while_the_device_is_made_does_not_spend_the_code(
    cloud: CloudUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither does it leave a device or an act: all of it is one transaction."""
    from metricsd.cloud import sqlite_enrolment

    def fail(*_: object) -> None:
        raise RuntimeError("in the middle")

    await cloud.tenant()
    text = await code_for(cloud)
    for name in ("insert_device", "keep"):
        with monkeypatch.context() as patched:
            patched.setattr(sqlite_enrolment, name, fail)
            assert (await use(cloud, text)).status_code == 500
        assert await cloud.backend.directory.list_devices(None) == []
    ok(await use(cloud, text))
    assert [row.act.action for row in await cloud.backend.directory.audit_page(2, 9)] == ["device.enrolled"]


@pytest.mark.only_sqlite
async def test_guesses_at_names_of_codes_write_nothing(cloud: CloudUnderTest, monkeypatch: pytest.MonkeyPatch) -> None:
    """They come without a token, so they must not take the writer from those who have one."""
    from metricsd.cloud.sqlite_file import FileThread

    runs: list[FileThread] = []
    real = FileThread.run

    async def counted(self: FileThread, work: object) -> object:
        runs.append(self)
        return await real(self, work)  # type: ignore[arg-type]

    await cloud.tenant()
    text = await code_for(cloud)
    monkeypatch.setattr(FileThread, "run", counted)
    assert problem(await use(cloud, new_code().text())) == (401, "bad_token")
    readers = set(runs)
    assert problem(await use(cloud, wrong(text))) == (401, "bad_token")
    assert len(readers) == 1 and len(set(runs)) == 2


async def test_a_code_opens_no_other_door(cloud: CloudUnderTest) -> None:
    """Only enrolment takes it."""
    await cloud.tenant()
    text = await code_for(cloud)
    for path in ("/capabilities", "/changes", "/policy"):
        assert problem(await cloud.get(path, text)) == (401, "bad_token")
    ok(await use(cloud, text))


@pytest.mark.only_sqlite
async def test_no_code_lies_on_disk(cloud: CloudUnderTest) -> None:
    """Its name does; its secret is there as a slow hash alone."""
    await cloud.tenant()
    found = parse_code(await code_for(cloud))
    assert found is not None
    held = b"".join(path.read_bytes() for path in cloud.folder.iterdir())
    assert found.id.encode() in held and found.secret.encode() not in held


@pytest.mark.parametrize("life_s", [0, codes.LIFE_S_MAX + 1])
async def test_a_codes_life_is_bounded(cloud: CloudUnderTest, life_s: int) -> None:
    """A code that lies in a mailbox for a year would be a password."""
    await cloud.tenant()
    with pytest.raises(UsageError, match="--expires"):
        await code_for(cloud, life_s=life_s)


@given(st.text(ALPHABET, min_size=12, max_size=12))
def test_a_code_is_read_however_it_was_typed(plain: str) -> None:
    """Case, groups, and the letters that people take for digits."""
    code = Code(plain[:4], plain[4:])
    typed = code.text().lower().replace("0", "o").replace("1", "l")
    assert parse_code(typed) == parse_code(f" {plain} ") == parse_code(code.text()) == code


@given(st.text(max_size=60))
def test_what_cannot_be_a_code_is_none(text: str) -> None:
    """Nothing that is typed makes it fail, and whatever is taken has the code's form."""
    found = parse_code(text)
    assert found is None or (len(found.id), len(found.secret)) == (4, 8)


def test_a_token_is_no_code() -> None:
    """The two are told apart by their length alone."""
    from metricsd.cloud.access import Scope
    from metricsd.cloud.auth import new_token

    assert all(parse_code(new_token(scope)) is None for scope in Scope)
