"""Makes the cluster options and fixtures known to all tests."""

pytest_plugins = ["e2e.plugin"]
