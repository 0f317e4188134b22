"""From Prometheus or from the pods themselves to a `ServiceObservation`: series, their names, ages and gaps."""
