"""Opens a home for taking in: identity, spool, store, and the tail that reads one into the other.

The daemon and a foreground `sync` begin with the same steps, in the thread that will own the store. The caller holds
the instance lock.
"""

from __future__ import annotations

from typing import NamedTuple

from metricsd.clock import Clock
from metricsd.config import Config, Paths
from metricsd.errors import StoreUnavailable
from metricsd.identity import Identity, load_identity
from metricsd.spool import ensure_spool
from metricsd.store import salvage, sources
from metricsd.store.backup import sweep_partials
from metricsd.store.connection import Store, translated
from metricsd.store.ingest import Ingest
from metricsd.tail import Tail


class Intake(NamedTuple):
    """An open store and its tail; both belong to one thread."""

    store: Store
    tail: Tail

    def take_all(self) -> None:
        """Take in everything that lies in the spool now. Raises StoreError, and nothing is lost then."""
        while self.tail.tick().more:
            continue


def open_intake(paths: Paths, config: Config, clock: Clock) -> Intake:
    """Open, making what is missing and finishing a repair that was begun; raise StoreError or ConfigError that says what to do."""
    identity = prepare(paths)
    salvage.finish(paths.store)
    if salvage.is_needed(paths):
        salvage.repair(paths, clock)
    store = Store.open(paths.store, clock=clock, backups=paths.backups)
    try:
        return Intake(store, make_tail(store, paths, config, identity)[1])
    except BaseException:
        store.close()
        raise


def prepare(paths: Paths) -> Identity:
    """Return this installation's identity and make the spool: what taking in needs beside the store."""
    try:
        identity = load_identity(paths)
    except OSError as error:
        raise StoreUnavailable(
            f"{paths.identity}: cannot be written ({error.strerror}): free disk space or repair the folder's permissions"
        ) from error
    ensure_spool(paths.spool)
    return identity


def make_tail(store: Store, paths: Paths, config: Config, identity: Identity) -> tuple[Ingest, Tail]:
    """Return the tail that reads this home's files into an open store, from where it left off, and its sink."""
    with translated(paths.backups):
        sweep_partials(paths.backups)
    with translated(paths.store):
        checkpoints = sources.load_all(store)
    ingest = Ingest(store, quarantine_bytes_max=config.store.quarantine_bytes_max)
    return ingest, Tail(ingest, paths.spool, config.tail, identity.installation_key, store.clock, checkpoints)
