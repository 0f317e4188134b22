"""Arrival-rate quantiles over the actuation horizon."""
