"""Wattkeeper: keeps LLM inference fleets at the lowest energy that still meets their latency SLO."""

__version__ = "0.1.0"
