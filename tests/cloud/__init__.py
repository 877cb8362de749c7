"""Tests of the cloud: the real app, over ASGI and over sockets."""
