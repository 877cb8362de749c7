"""metricsd: metrics of AI coding sessions, captured, kept, synced."""

__version__ = "0.1.0"
