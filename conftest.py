"""Makes the cluster options and fixtures known to all tests."""

import wattkeeper.cli  # noqa: F401 - one thread for linear algebra, before anything loads NumPy

pytest_plugins = ["e2e.plugin"]
