"""A small in-memory Kubernetes API server for the demo and the tests."""
