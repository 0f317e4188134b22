"""Plain data that rooms pass to one another: workloads, engine settings, observations, plans."""
