"""Any order of administrative acts, enrolments, guesses and time: who gets in is always as a small model says.

The model knows nothing of SQL: a token counts until it is revoked, replaced or expired, and while its tenant is let in;
a code counts once, for its time and five attempts. After each step every token is asked for, and the audit log holds one
row for each act that changed something.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, precondition, rule

from metricsd.cloud import tenants
from metricsd.cloud.access import Scope, Token
from metricsd.cloud.audit import verify
from metricsd.cloud.auth import authenticate, digest_of
from metricsd.cloud.codes import ATTEMPTS_MAX, parse_code
from metricsd.cloud.enrolment import create_code, enrol, enrol_by_code, erase_device, find_code
from metricsd.cloud.problems import Refused
from metricsd.cloud.sqlite import SqliteBackend
from metricsd.config import Cloud
from metricsd.errors import UsageError
from metricsd.protocol import EnrolReply, EnrolRequest
from tests.fakes import FakeClock

T = TypeVar("T")
US = 1_000_000
TENANTS = ("acme", "rival")
USERS = ("ann", "bob")
# Few values, so that one thing often ends just before, with or behind another.
LIVES = st.sampled_from([None, 1, 60, 300])
OVERLAPS = st.sampled_from([0, 60, 200])
NUMBERS = st.integers(0, 1000)
WAITS = st.sampled_from([1, 59, 60, 200])


@dataclass
class Known:
    """What the model knows of a token."""

    text: str
    tenant: str
    user: str
    scope: Scope
    device: str | None = None
    expires_at: int | None = None
    revoked: bool = False
    erased: bool = False


@dataclass
class KnownCode:
    """What the model knows of a code."""

    text: str
    tenant: str
    user: str
    expires_at: int
    attempts: int = 0
    spent: bool = False


@dataclass
class Model:
    """Everything at once."""

    tokens: list[Known] = field(default_factory=list)
    codes: list[KnownCode] = field(default_factory=list)
    suspended: set[str] = field(default_factory=set)
    acts: int = 0


class Access(RuleBasedStateMachine):
    """The control database against the model."""

    tokens: Bundle[Known] = Bundle("tokens")
    codes: Bundle[KnownCode] = Bundle("codes")

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = Path(tempfile.mkdtemp())
        self.clock = FakeClock()
        self.model = Model()

    @initialize(target=tokens)
    def begin(self) -> Any:
        """Begin with two tenants, each with two users who have a token to enrol with and a device."""
        self.backend = self.run(self._open())
        self.directory = self.backend.directory
        for name in TENANTS:
            self.run(tenants.create_tenant(self.directory, name, self.clock, actor="test"))
            self.model.acts += 1
        made = [self.make_first(tenant, user) for tenant in TENANTS for user in USERS]
        return multiple(*(token for pair in made for token in pair))

    def make_first(self, tenant: str, user: str) -> tuple[Known, Known]:
        text = self.run(tenants.create_token(self.directory, tenant, user, Scope.ENROL, self.clock, actor="test"))
        self.model.acts += 1
        found = self.run(self.directory.find_token(digest_of(text)))
        assert found is not None
        reply = self.run(enrol(self.directory, found, EnrolRequest(name="x"), self.clock))
        return self._know(Known(text, tenant, user, Scope.ENROL)), self._enrolled(reply)

    async def _open(self) -> SqliteBackend:
        return SqliteBackend(self.folder, Cloud(), self.clock)

    def teardown(self) -> None:
        if hasattr(self, "backend"):
            self.run(self.backend.close())
        self.loop.close()
        shutil.rmtree(self.folder)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    def counts(self, token: Known) -> bool:
        """Return whether the model lets a token in, its tenant's state aside."""
        return not token.revoked and (token.expires_at is None or self.clock.now_us() < token.expires_at)

    def found(self, token: Known) -> Token:
        found = self.run(self.directory.find_token(digest_of(token.text)))
        assert found is not None
        return found

    @rule(target=tokens, tenant=st.sampled_from(TENANTS), user=st.sampled_from(USERS), life_s=LIVES,
          scope=st.sampled_from([Scope.ENROL, Scope.READ, Scope.ADMIN]))  # fmt: skip
    def make_token(self, tenant: str, user: str, life_s: int | None, scope: Scope) -> Known:
        expires_at = None if life_s is None else self.clock.now_us() + life_s * US
        text = self.run(
            tenants.create_token(self.directory, tenant, user, scope, self.clock, expires_at=expires_at, actor="test")
        )
        self.model.acts += 1
        return self._know(Known(text, tenant, user, scope, expires_at=expires_at))

    @rule(target=tokens, token=tokens)
    def enrol(self, token: Known) -> Any:
        """An enrolment token makes a device; every other one, and one that does not count, is refused before that."""
        try:
            found = self.run(authenticate(self.directory, f"Bearer {token.text}", self.clock.now_us(), Scope.ENROL))
        except Refused:
            assert not (self.counts(token) and token.scope is Scope.ENROL and token.tenant not in self.model.suspended)
            return multiple()
        assert self.counts(token) and token.scope is Scope.ENROL
        return self._enrolled(self.run(enrol(self.directory, found, EnrolRequest(name="x"), self.clock)))

    @rule(target=tokens, token=tokens, overlap_s=OVERLAPS)
    def rotate(self, token: Known, overlap_s: int) -> Any:
        before = self.found(token)
        try:
            text, _ = self.run(tenants.rotate_token(self.directory, before.id, overlap_s, self.clock, actor="test"))
        except UsageError:
            assert not self.counts(token)
            return multiple()
        assert self.counts(token)
        self.model.acts += 1
        made = Known(text, token.tenant, token.user, token.scope, token.device, token.expires_at)
        ends_at = self.clock.now_us() + overlap_s * US
        token.expires_at = ends_at if token.expires_at is None else min(ends_at, token.expires_at)
        return self._know(made)

    @rule(token=tokens)
    def revoke(self, token: Known) -> None:
        self.run(tenants.revoke_token(self.directory, self.found(token).id, self.clock, actor="test"))
        self.model.acts += not token.revoked
        token.revoked = True

    @rule(tenant=st.sampled_from(TENANTS), user=st.sampled_from(USERS))
    def revoke_user(self, tenant: str, user: str) -> None:
        theirs = [token for token in self.model.tokens if (token.tenant, token.user) == (tenant, user)]
        codes = [c for c in self.model.codes if not c.spent and (c.tenant, c.user) == (tenant, user)]
        try:
            ended = self.run(tenants.revoke_user(self.directory, tenant, user, self.clock, actor="test"))
        except UsageError:
            assert not theirs and not codes
            return
        assert ended == sum(not token.revoked for token in theirs)
        self.model.acts += bool(ended or codes)
        for token in theirs:
            token.revoked = True
        for code in codes:
            code.spent = True

    @rule(token=tokens)
    def revoke_device(self, token: Known) -> None:
        if token.device is None:
            return
        self.run(tenants.revoke_device(self.directory, token.device, self.clock, actor="test"))
        theirs = [known for known in self.model.tokens if known.device == token.device]
        self.model.acts += any(not known.revoked for known in theirs)
        for known in theirs:
            known.revoked = True

    @rule(asker=NUMBERS, name=NUMBERS)
    def erase(self, asker: int, name: int) -> None:
        """A device token takes back its user's devices, an admin's any of the tenant; an erased one only itself."""
        devices = [known for known in self.model.tokens if known.device is not None]
        named = devices[name % len(devices)]
        asking = [*devices, *self.model.tokens][asker % (len(devices) + len(self.model.tokens))]
        assert named.device is not None
        now = self.clock.now_us()
        mine = asking.tenant == named.tenant and (asking.scope is Scope.ADMIN or asking.user == named.user)
        allowed = asking.tenant not in self.model.suspended and (
            asking.device == named.device if asking.erased else self.counts(asking) and mine
        )
        allowed = allowed and asking.scope in (Scope.DEVICE, Scope.ADMIN)
        try:
            token = self.run(
                authenticate(self.directory, f"Bearer {asking.text}", now, Scope.DEVICE, Scope.ADMIN, erased_too=True)
            )
            assert self.run(erase_device(self.directory, token, named.device, now)) == named.user
        except Refused:
            assert not allowed
            return
        assert allowed
        self.model.acts += not named.erased
        for known in self.model.tokens:
            if known.device == named.device:
                known.revoked = known.erased = True

    @rule(
        target=codes, tenant=st.sampled_from(TENANTS), user=st.sampled_from(USERS), life_s=st.sampled_from([1, 60, 300])
    )
    def make_code(self, tenant: str, user: str, life_s: int) -> KnownCode:
        text, code = self.run(create_code(self.directory, tenant, user, life_s, self.clock, actor="test"))
        self.model.acts += 1
        made = KnownCode(text, tenant, user, code.expires_at)
        self.model.codes.append(made)
        return made

    @rule(target=tokens, code=codes, right=st.booleans())
    def use_code(self, code: KnownCode, right: bool) -> Any:
        now = self.clock.now_us()
        usable = not code.spent and now < code.expires_at and code.attempts < ATTEMPTS_MAX
        text = code.text if right else code.text[:-1] + ("0" if code.text[-1] != "0" else "1")
        typed = parse_code(text)
        assert typed is not None
        code.attempts += usable
        try:
            found = self.run(find_code(self.directory, typed, now))
            reply = self.run(enrol_by_code(self.directory, found, EnrolRequest(name="x"), self.clock))
        except Refused:
            assert not (usable and right and code.tenant not in self.model.suspended)
            return multiple()
        assert usable and right and code.tenant not in self.model.suspended
        code.spent = True
        return self._enrolled(reply)

    @rule(tenant=st.sampled_from(TENANTS), out=st.booleans())
    def suspend_or_resume(self, tenant: str, out: bool) -> None:
        work = tenants.suspend_tenant if out else tenants.resume_tenant
        self.run(work(self.directory, tenant, self.clock, actor="test"))
        self.model.acts += out != (tenant in self.model.suspended)
        (self.model.suspended.add if out else self.model.suspended.discard)(tenant)

    @rule(seconds=WAITS)
    def wait(self, seconds: int) -> None:
        self.clock.advance(seconds)

    @precondition(lambda self: hasattr(self, "backend"))
    @invariant()
    def everybody_is_let_in_as_the_model_says(self) -> None:
        now = self.clock.now_us()
        ids = {known.text: self.found(known).id for known in self.model.tokens}
        live = self.run(self.directory.live_tokens(list(ids.values()), now))
        for known in self.model.tokens:
            expected = self.counts(known) and known.tenant not in self.model.suspended
            assert (ids[known.text] in live) == expected
            try:
                self.run(authenticate(self.directory, f"Bearer {known.text}", now, *Scope))
            except Refused:
                assert not expected
            else:
                assert expected

    @precondition(lambda self: hasattr(self, "backend"))
    @invariant()
    def the_log_has_one_row_for_each_act(self) -> None:
        found = self.run(verify(self.directory))
        assert (found.fault, found.last.seq) == (None, self.model.acts)

    def _know(self, token: Known) -> Known:
        self.model.tokens.append(token)
        return token

    def _enrolled(self, reply: EnrolReply) -> Known:
        self.model.acts += 1
        return self._know(
            Known(reply.device_token, reply.tenant, reply.user, Scope.DEVICE, device=str(reply.device_id))
        )


TestAccess = Access.TestCase
TestAccess.settings = settings(max_examples=40, stateful_step_count=30)
