"""Handlers, fleet loop, status, events, own metrics, health: the one room that calls Kubernetes."""
