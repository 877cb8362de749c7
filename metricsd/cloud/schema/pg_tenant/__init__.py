"""Schema steps of one tenant's schema on PostgreSQL."""
