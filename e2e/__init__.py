"""End-to-end tests on a real Kubernetes API, and what they stand on."""
