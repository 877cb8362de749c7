"""Tests of the capture hook, its installer and the spool's contract."""
