"""The embedded cloud: one app, any backend, tenants kept apart. See app.py, where a request enters."""
