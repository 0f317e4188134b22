"""Kopf handlers, the fleet loop, status and conditions, events, own metrics, health: the one room that calls Kubernetes."""
