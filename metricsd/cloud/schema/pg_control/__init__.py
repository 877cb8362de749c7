"""Schema steps of the control schema on PostgreSQL."""
