"""The local store: one SQLite file per installation, written by one thread.

Import the module that holds the noun: connection (open, transaction), events, counters, rollups, ingest, records,
outbox, feed, sources, quarantine, retention, backup.
"""
