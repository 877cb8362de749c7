"""Figures of metricsd, each beside the floor of the same run. `python -m bench` prints them all."""
