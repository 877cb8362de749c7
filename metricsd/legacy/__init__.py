"""The older API and its formats, over small Protocols: no transport, no storage, no settings.

What an older client or hook wrote or expects is understood here and nowhere else. Its interface is kept, its faults
are not; each difference is listed in docs/api-legacy.md.
"""
