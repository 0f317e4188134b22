import os
import pathlib

import pytest

from wattkeeper.evaluation import cache, grid, sla, traffic

POINTS = 24


@pytest.fixture(scope="session")
def small_grid():
    return grid.design(traffic.synthetic(seed=0), points=POINTS, seed=3, requests=1200)


@pytest.fixture(scope="session")
def small_runs(small_grid):
    return cache.simulated(small_grid, processes=1, done=lambda _: None)


@pytest.fixture(scope="session")
def small_evaluation(small_grid, small_runs):
    settings = sla.Settings(data=None, points=POINTS, requests=1200, seed=3)
    return sla.of(small_runs, small_grid, settings, progress=lambda what, total: lambda count: None)


@pytest.fixture(scope="session")
def data_folder() -> pathlib.Path:
    folder = os.environ.get("WATTKEEPER_DATA")
    if not folder or not (pathlib.Path(folder) / "kernels").is_dir():
        pytest.skip("WATTKEEPER_DATA has no kernels/ (measured kernels)")
    return pathlib.Path(folder)
