"""What is asked of a tenant's database for the older API, as plans: the same for SQLite and PostgreSQL.

A plan is a generator that yields single questions and is sent their answers, so that what is asked, in which order and
what is made of it is written once, and each database only knows how to answer one question. Words are numbers of terms;
`{person}` in a question stands for the column of `event` that says whose it is.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar

T = TypeVar("T")


class Ask(NamedTuple):
    """A statement and its values, marked by `?`; the answer is a list of rows."""

    sql: str
    values: Sequence[Any] = ()


class Many(NamedTuple):
    """A statement for each of many rows; no answer."""

    sql: str
    rows: Sequence[Sequence[Any]]


class Words(NamedTuple):
    """Numbers of terms; the answer is {number: text}."""

    numbers: Iterable[int | None]


class Number(NamedTuple):
    """A text; the answer is its number, None without one."""

    text: str


class Records(NamedTuple):
    """Ids of this user's records of a type; the answer is {id: RecordState}."""

    type: str
    ids: Sequence[str]


class Between(NamedTuple):
    """This user's next records of a type between two ids, both exclusive; the answer is a list of RecordState."""

    type: str
    after: str
    before: str
    limit: int


class Events(NamedTuple):
    """Change numbers of this user's events; the answer is a list of WireEvent."""

    changes: Sequence[int]


class Head(NamedTuple):
    """The answer is the tenant's newest change number."""


Question: TypeAlias = Ask | Many | Words | Number | Records | Between | Events | Head
Plan: TypeAlias = Generator[Question, Any, T]


def marks_of(values: Sequence[Any]) -> str:
    """Return as many `?` as there are values."""
    return ", ".join("?" * len(values))


def numbered(sql: str) -> str:
    """Return a statement with `$1`, `$2`, ... in place of each `?`."""
    first, *rest = sql.split("?")
    return first + "".join(f"${number}{part}" for number, part in enumerate(rest, 1))


def texts_of(row: Sequence[Any], places: Sequence[int], words: Mapping[int, str]) -> list[str | None]:
    """Return the texts of the numbers at these places of a row."""
    return [None if row[place] is None else words[row[place]] for place in places]
