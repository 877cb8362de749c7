"""Schema steps of one tenant's database: streams, events, records, the feed."""
