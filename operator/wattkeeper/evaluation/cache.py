"""Runs kept in a folder under a hash of what they depend on: the point, what it repeats, and the simulator's source."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from wattkeeper.domain import whole_file
from wattkeeper.domain.arrivals import Dispersion
from wattkeeper.domain.workload import FloatArray, LengthDistribution, Workload
from wattkeeper.evaluation import runs
from wattkeeper.evaluation.grid import Grid
from wattkeeper.evaluation.points import OperatingPoint
from wattkeeper.evaluation.runs import Run
from wattkeeper.physics import step
from wattkeeper.replica import arrivals, saturation, state, stepper, types


def simulated(
    grid: Grid,
    *,
    folder: Path | None = None,
    processes: int | None = None,
    done: Callable[[int], None],
) -> list[Run]:
    """Runs of all points that can run, in their order, from `folder` where they are there, else simulated and kept.

    `done` is told how many more points are settled.
    """
    found: dict[str, Run | None] = {}
    missing = []
    for point in grid.points:
        path = _path(folder, point, grid.arrivals_of(point.name))
        if path is not None and path.exists():
            found[point.name] = _load(point, path)
        else:
            missing.append(point)
    done(len(found))
    recorded = {name: recording.times_seconds for name, recording in grid.recordings.items()}
    settled = 0
    for run in runs.simulate_all(missing, recorded=recorded, processes=processes):
        # Points that cannot run are left out by the simulator: those passed over on the way to this one.
        while missing[settled].name != run.point.name:
            found[missing[settled].name] = None
            settled += 1
            done(1)
        found[run.point.name] = run
        _keep(_path(folder, run.point, grid.arrivals_of(run.point.name)), run)
        settled += 1
        done(1)
    for point in missing[settled:]:
        found[point.name] = None
        done(1)
    for point in missing:
        if found[point.name] is None:
            _keep(_path(folder, point, grid.arrivals_of(point.name)), None)
    settled_runs = (found[point.name] for point in grid.points)
    return [run for run in settled_runs if run is not None]


def key(point: OperatingPoint, recorded: FloatArray | None) -> str:
    """Hash of everything that a run depends on."""
    digest = hashlib.sha256(_simulator())
    values = {
        field.name: getattr(point, field.name)
        for field in dataclasses.fields(point)
        if field.name not in ("name", "engine", "lengths")
    }
    digest.update(repr(sorted(values.items())).encode())
    for array in (point.lengths.prompt_tokens, point.lengths.output_tokens, recorded):
        digest.update(b"-" if array is None else array.tobytes())
    return digest.hexdigest()


@functools.cache
def _simulator() -> bytes:
    """Of the source: a simulator that was changed makes all kept runs stale."""
    digest = hashlib.sha256()
    for module in (arrivals, runs, saturation, state, step, stepper, types):
        digest.update(Path(str(module.__file__)).read_bytes())
    return digest.digest()


def _path(folder: Path | None, point: OperatingPoint, recorded: FloatArray | None) -> Path | None:
    return None if folder is None else folder / f"{key(point, recorded)}.json"


def _keep(path: Path | None, run: Run | None) -> None:
    if path is None:
        return
    values = None
    if run is not None:
        values = {
            field.name: getattr(run, field.name)
            for field in dataclasses.fields(run)
            if field.name not in ("point", "workload")
        }
        values["workload"] = dataclasses.asdict(run.workload)
    path.parent.mkdir(parents=True, exist_ok=True)
    whole_file.write(path, json.dumps(values).encode())


def _load(point: OperatingPoint, path: Path) -> Run | None:
    values = json.loads(path.read_text())
    if values is None:
        return None
    workload = values.pop("workload")
    return Run(point=point, workload=_workload(workload), **{name: _tuple(value) for name, value in values.items()})


def _workload(values: dict[str, Any]) -> Workload:
    return Workload(
        requests_per_second=values["requests_per_second"],
        prompt=LengthDistribution(**{name: tuple(value) for name, value in values["prompt"].items()}),
        output=LengthDistribution(**{name: tuple(value) for name, value in values["output"].items()}),
        dispersion=Dispersion(**{name: tuple(value) for name, value in values["dispersion"].items()}),
        prefix_hit_ratio=values["prefix_hit_ratio"],
    )


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
