"""Plug-ins run in real processes, and nothing that they do reaches further than their rule's fallback."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from metricsd.conflict import Conflict
from metricsd.policy import Plugin, load
from metricsd.sync.plugins import BREAKS_MAX, Answer, Pool
from metricsd.sync.trial import decide
from tests.conflict.samples import edited, version
from tests.policy.support import example_plugin, places_in, policy_text, put, rule

BASE = version(1, "d", description="old", tags=["a"])
SUBJECT = Conflict(
    "session",
    "claude-code/s1",
    BASE,
    edited(BASE, 2, "one", description="here"),
    edited(BASE, 3, "two", description="cloud"),
)
Make = Callable[[str], Plugin]


@pytest.fixture
def pool() -> Iterator[Pool]:
    """A pool with half a second for an answer: a busy machine must not decide these tests."""
    opened = Pool(limit_s=0.5)
    yield opened
    opened.close()


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Write a plug-in's body into a private file and pin it."""

    def write(body: str) -> Plugin:
        code = f"def resolve(base, local, remote, context):\n    {body}\n"
        file = put(tmp_path / "plugin.py", code)
        return Plugin(file.name, file, hashlib.sha256(code.encode()).hexdigest())

    return write


def ask(pool: Pool, plugin: Plugin) -> Answer:
    return pool.ask(plugin, SUBJECT, ["description"])


def workers() -> list[psutil.Process]:
    """Return this process's plug-in processes."""
    found = psutil.Process().children()
    return [one for one in found if any("plugin_worker" in part for part in one.cmdline())]


def test_a_plug_in_sees_the_conflict_and_answers(pool: Pool, make: Make) -> None:
    """base, local, remote and context are as the guide says; what was not asked for is ignored."""
    plugin = make(
        "stamps, [name] = context['stamps'], context['fields']\n"
        "    return {'description': '|'.join([base['description'], local['description'], remote['description'],"
        " context['type'], context['id'], *context['fields'], str(stamps['local'][name] < stamps['remote'][name])]),"
        " 'tags': 'nonsense'}"
    )
    answer = ask(pool, plugin)
    assert answer == Answer({"description": "old|here|cloud|session|claude-code/s1|description|True"})


def test_one_process_answers_many_conflicts(pool: Pool, make: Make) -> None:
    """Never a fork per decision; closing ends it."""
    plugin = make("import os; return {'description': str(os.getpid())}")
    answers = {str((ask(pool, plugin).fields or {})["description"]) for _ in range(20)}
    assert answers == {str(one.pid) for one in workers()}
    assert len(answers) == 1
    pool.close()
    assert workers() == []
    assert ask(pool, plugin).fields is not None, "a closed pool can be used again"


async def test_the_event_loop_goes_on_meanwhile(pool: Pool, make: Make) -> None:
    """`propose` is the same, awaited."""
    assert (await pool.propose(make("return {'description': 'x'}"), SUBJECT, ["description"])).fields == {
        "description": "x"
    }


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("raise KeyError('secret text')", "raised KeyError in line 2"),
        ("while True: pass", "took longer than 500 ms"),
        ("import time; time.sleep(60)", "took longer than 500 ms"),
        ("import time\n    try: time.sleep(60)\n    except Exception: return {}", "took longer than 500 ms"),
        ("return {'description': ' ' * (1 << 40)}", "used too much memory"),
        ("x = []\n    while True: x.append(' ' * (1 << 24))", "used too much memory"),
        ("import sys; sys.exit(3)", "raised SystemExit"),
        ("import os; os._exit(0)", "ended its process"),
        ("import os; os.kill(os.getpid(), 9)", "ended its process"),
        ("return None", "did not return a dictionary"),
        ("return ['description']", "did not return a dictionary"),
        ("return {'description': 5}", "returned a wrong description: expected text"),
        ("return {'description': 'x' * 2000}", "returned a wrong description"),
        ("return {'description': {}}", "returned a wrong description"),
        ("return {'description': float('nan')}", "raised ValueError"),
        ("return {'description': object()}", "raised TypeError"),
        ("return {'description': 'x' * 2_000_000}", "answered with too much"),
        ("def f(): return f()\n    return f()", "raised RecursionError"),
        ("return 1 +", "cannot be loaded: raised SyntaxError in line 2"),
    ],
)
def test_misbehaviour_is_an_answer_without_fields(pool: Pool, make: Make, body: str, problem: str) -> None:
    """Each has its reason, without any text of the plug-in's own, and the pool works on afterwards."""
    answer = ask(pool, make(body))
    assert answer.fields is None
    assert problem in answer.problem
    assert "secret" not in answer.problem
    assert ask(pool, make("return {'description': 'fine'}")).fields == {"description": "fine"}


def test_a_plug_in_that_holds_off_its_limit_is_killed(pool: Pool, make: Make) -> None:
    """It catches everything or takes the timer away: the process is killed from outside soon after."""
    for body in (
        "import time\n    try: time.sleep(60)\n    except BaseException: pass\n    while True: pass",
        "import signal\n    signal.setitimer(signal.ITIMER_REAL, 0)\n    while True: pass",
    ):
        began = time.monotonic()
        assert "did not answer in time" in ask(pool, make(body)).problem
        assert time.monotonic() - began < 10
    assert workers() == []


def test_a_plug_in_that_always_hangs_is_left_alone(pool: Pool, make: Make) -> None:
    """A hundred thousand conflicts must not wait for it one by one."""
    plugin = make("while True: pass")
    for _ in range(BREAKS_MAX):
        assert "took longer" in ask(pool, plugin).problem
    began = time.monotonic()
    assert "left alone" in ask(pool, plugin).problem
    assert time.monotonic() - began < 0.2


def test_its_input_is_a_copy(pool: Pool, make: Make) -> None:
    """Mutating it changes nothing here and nothing in the next question."""
    plugin = make(
        "seen = [local['description'], len(local['tags'])]; local.clear(); base['tags'].append('x');"
        " context['fields'].clear(); return {'description': str(seen)}"
    )
    before = repr(SUBJECT)
    answers = [ask(pool, plugin).fields for _ in range(3)]
    assert answers == [{"description": "['here', 1]"}] * 3
    assert repr(SUBJECT) == before


def test_what_it_prints_goes_nowhere(pool: Pool, make: Make, capfd: pytest.CaptureFixture[str]) -> None:
    """Neither to our output nor into its answer."""
    body = "import os, sys\n    print('loud'); sys.stderr.write('loud'); os.write(1, b'loud'); os.write(2, b'loud')"
    assert ask(pool, make(f"{body}\n    return {{'description': 'x'}}")).fields == {"description": "x"}
    assert capfd.readouterr() == ("", "")


def test_it_sees_no_secrets(pool: Pool, make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No environment, no open file of ours, no folder of ours, nothing on its path but the standard library."""
    monkeypatch.setenv("METRICSD_SECRET", "hunter2")
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    with (tmp_path / "secret").open("w") as stream:
        os.set_inheritable(stream.fileno(), True)
        found = ask(
            pool,
            make(
                "import os, sys\n    opened = []\n    for fd in range(3, 200):\n        try: os.fstat(fd); opened.append(fd)\n"
                "        except OSError: pass\n"
                "    kinds = {os.fstat(fd).st_mode & 0o170000 for fd in opened}\n"
                "    return {'description': repr((sorted(k for k in os.environ if k != 'LC_CTYPE'), os.getcwd(), len(opened) <= 3,"
                " any('site-packages' in p for p in sys.path), 'metricsd' in sys.modules, 0o100000 in kinds))}"
            ),
        )
    assert found.fields == {"description": "([], '/', True, False, False, False)"}


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS has no limit of a process's address space")
def test_its_memory_is_limited_by_the_system(pool: Pool, make: Make) -> None:
    """It cannot raise the limit again, nor write files."""
    body = "import resource\n    return {'description': repr(resource.getrlimit(resource.RLIMIT_AS)[1] <= 1 << 27)}"
    assert ask(pool, make(body)).fields == {"description": "True"}


def test_only_what_was_pinned_runs(pool: Pool, make: Make, tmp_path: Path) -> None:
    """A changed, missing or exposed file never starts."""
    plugin = make("return {'description': 'x'}")
    put(plugin.path, "def resolve(*_):\n    return {'description': 'evil'}\n")
    assert "has sha256" in ask(pool, plugin).problem
    plugin = make("return {'description': 'x'}")
    plugin.path.chmod(0o622)
    assert "is refused" in ask(pool, plugin).problem
    plugin.path.unlink()
    assert "cannot be read" in ask(pool, plugin).problem
    assert workers() == []


def test_the_policy_decides_by_its_fallback_when_the_plug_in_fails(tmp_path: Path) -> None:
    """From file to decision: the worked example decides, a broken one leaves it to the fallback."""
    places = places_in(tmp_path / "home")
    code, sha256 = example_plugin()
    put(places.user / "p.py", code)
    extra = f'plugin = "p.py"\nsha256 = "{sha256}"\nfallback = "local_wins"'
    put(places.user / "x.toml", policy_text(rule("custom", field="description", extra=extra)))
    pool = Pool(limit_s=5)
    try:
        good = decide(load(places), SUBJECT, None, pool)
        swapped = decide(load(places), SUBJECT._replace(local=SUBJECT.remote, remote=SUBJECT.local), None, pool)
        pool.close()
        put(places.user / "p.py", "changed")
        bad = decide(load(places), SUBJECT, None, pool)
    finally:
        pool.close()
    assert good.resolution.version.fields["description"] == "cloud / here"
    assert swapped.resolution.version == good.resolution.version
    assert (good.resolution.strategy, good.problems) == ("custom", [])
    assert bad.resolution.version.fields["description"] == "here"
    assert bad.resolution.strategy == "local_wins"
    assert "has sha256" in bad.problems[0]
