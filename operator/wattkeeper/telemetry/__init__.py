"""Prometheus and direct-scrape sources that become Observations; metric alias table; freshness."""
