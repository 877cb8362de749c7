"""Schema steps of the control database: tenants, users, devices, tokens."""
