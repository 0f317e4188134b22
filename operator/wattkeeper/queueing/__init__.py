"""Fluid stability, KV limit and latency percentiles of one replica under load: the SLA check."""
