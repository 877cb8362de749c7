"""Sync with the cloud: pure decisions in `plan`, one bounded round in `engine`, what leaves in `outgoing`."""
