from dataclasses import replace

import numpy as np

from wattkeeper.evaluation import cache, grid
from wattkeeper.evaluation.grid import Grid


def simulated(points, folder):
    told = []
    runs = cache.simulated(points, folder=folder, processes=1, done=told.append)
    return runs, told


def test_kept_runs_are_the_runs(tmp_path, small_grid, small_runs):
    part = Grid(points=small_grid.points[:3], recordings={})
    first, told = simulated(part, tmp_path)
    kept = sorted(path.name for path in tmp_path.iterdir())
    again, told_again = simulated(part, tmp_path)
    assert len(kept) == 3
    assert first == again == [run for run in small_runs if run.point in part.points]
    assert sum(told) == sum(told_again) == 3
    assert told_again[0] == 3  # nothing was simulated


def test_points_that_cannot_run_are_kept_as_such(tmp_path, small_grid):
    point = small_grid.points[0]
    one_token = replace(point.lengths, output_tokens=np.ones_like(point.lengths.output_tokens))
    part = Grid(points=(replace(point, lengths=one_token), small_grid.points[1]), recordings={})
    for _ in range(2):
        runs, told = simulated(part, tmp_path)
        assert [run.point.name for run in runs] == [small_grid.points[1].name]
        assert sum(told) == 2
    assert len(list(tmp_path.iterdir())) == 2


def test_the_key_follows_what_a_run_depends_on(small_grid):
    point = small_grid.points[0]
    key = cache.key(point, None)
    assert key == cache.key(replace(point, name="other", engine="other"), None)
    assert key != cache.key(replace(point, load=point.load + 1e-9), None)
    assert key != cache.key(point, np.array([1.0, 2.0]))
    longer = replace(point.lengths, prompt_tokens=point.lengths.prompt_tokens + 1)
    assert key != cache.key(replace(point, lengths=longer), None)
    assert len({cache.key(each, None) for each in small_grid.points}) == len(small_grid.points)
    assert grid.REQUESTS >= 40_000
