"""Tests of the failover."""
