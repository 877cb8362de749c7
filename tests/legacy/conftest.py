"""Who asks for `cloud` here is run on SQLite and on PostgreSQL, as in the cloud's own tests."""

from tests.cloud.conftest import cloud, cloud_place, pytest_generate_tests

__all__ = ["cloud", "cloud_place", "pytest_generate_tests"]
