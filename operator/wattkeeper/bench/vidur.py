"""The twin beside Microsoft's Vidur: the same requests, limits and step times through both, in turns.

Vidur's predictor of execution times is replaced at run time by the twin's step form (`vidur_driver`), so that what is
left to differ are the schedulers and the bookkeeping. Vidur runs its Sarathi scheduler, whose rules are those of vLLM
V1 with chunked prefill. Vidur is not part of the project: a folder and a Python that can import it are given.
"""

import hashlib
import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from wattkeeper.bench import vidur_driver
from wattkeeper.domain.engine import EngineSettings
from wattkeeper.domain.errors import DataFileError, WattkeeperError
from wattkeeper.domain.workload import FloatArray
from wattkeeper.replica import arrivals
from wattkeeper.traces import formats
from wattkeeper.traces.trace import IntArray, Trace
from wattkeeper.twin import hardware
from wattkeeper.twin.hardware import ReplicaHardware
from wattkeeper.twin.replica import Replica
from wattkeeper.twin.request import FRONT_END_SECONDS, Request

COMMIT = "7d47513363ec447a741ac5e47241580b47724fbf"
SOURCES_SHA256 = "ae9689a2172fa5daf1c3eb78ba9b0be84db8ca740795fcdc5e34f74ad19d7c0d"
"""Of path and content of every Python file of Vidur's package at `COMMIT`."""
HOW_TO_GET = f"clone https://github.com/microsoft/vidur and check out {COMMIT}"
NEEDS = "numpy pandas scikit-learn ddsketch plotly_express matplotlib seaborn wandb kaleido fasteners"
LENGTHS = Path("traces") / "azure-2023" / "AzureLLMInferenceTrace_conv.csv"
MODEL, ACCELERATOR = "meta-llama/Llama-3.1-8B-Instruct", "a100-sxm-80gb"
MAX_NUM_SEQS, MAX_NUM_BATCHED_TOKENS = 128, 512
RATES = (2.0, 4.0, 5.0)
FOREST_TOKENS = 4096
"""The longest request that Vidur's own predictor makes tables for, by its defaults."""
_ALIGNED_WATTS = 1e9
"""No power limit: Vidur has none, and its step times do not depend on power."""
_SETTLE_SECONDS = 1e6
_TIMEOUT_SECONDS = 1800.0
_PLAYS = 5


class VidurError(WattkeeperError):
    """Vidur is absent, of another version, or failed."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is compared."""

    vidur: Path
    python: Path
    """An interpreter with `NEEDS` installed."""
    data: Path
    rates: tuple[float, ...] = RATES
    """Poisson arrivals per second."""
    requests: int = 2000
    rounds: int = 3
    small_kv_blocks: tuple[int, ...] = (2500, 2000)
    """Of the cases with too little KV memory, at the middle rate."""
    forests: bool = True
    """Time Vidur's own predictor as well."""
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Load:
    """Requests for one engine; arrays (N,)."""

    arrival_seconds: FloatArray
    prompt_tokens: IntArray
    output_tokens: IntArray

    def clipped(self, tokens: int) -> "Load":
        """No request longer than `tokens`: prompts are cut, then answers."""
        output = np.minimum(self.output_tokens, tokens - 1)
        return replace(self, prompt_tokens=np.minimum(self.prompt_tokens, tokens - output), output_tokens=output)

    def rows(self) -> list[tuple[float, int, int]]:
        """Arrival in seconds, prompt and output tokens of each request."""
        columns = (self.arrival_seconds, self.prompt_tokens, self.output_tokens)
        return list(zip(*(column.tolist() for column in columns), strict=True))


@dataclass(frozen=True, kw_only=True)
class Played:
    """One run of one simulator."""

    first_token_seconds: FloatArray
    """(N,), simulated time."""
    finish_seconds: FloatArray
    cpu_seconds: float
    wall_seconds: float
    evictions: int
    steps: int | None = None
    """Iterations, where the simulator counts them."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Both simulators on the same requests with the same step times."""

    rate: float
    kv_blocks: int
    load: Load
    mended: bool
    """Vidur's restart of evicted requests was put right (`vidur_driver`)."""
    vidur: Played
    twin: Played


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Processor seconds per 1,000 requests, one entry per round."""

    rate: float
    what: str
    vidur_seconds: tuple[float, ...]
    twin_seconds: tuple[float, ...]
    steps_per_request: float
    """Iterations that Vidur played, over requests; the twin joins most of them."""

    @property
    def ratios(self) -> tuple[float, ...]:
        """Vidur over the twin, round by round."""
        return tuple(theirs / ours for theirs, ours in zip(self.vidur_seconds, self.twin_seconds, strict=True))


@dataclass(frozen=True, kw_only=True)
class Result:
    """All that was measured."""

    settings: Settings
    agreements: tuple[Agreement, ...]
    speeds: tuple[Speed, ...]
    python: str
    """Version of the interpreter that ran Vidur."""
    stand_in_profile: bool
    """Vidur's folder lacks its attention profile, so that its forests learned one made from the coefficients."""


def check(folder: Path, python: Path, *, forests: bool) -> None:
    """Raise VidurError unless `folder` holds the one version of Vidur that the driver was written against.

    `forests`: its own predictor is wanted, which learns from profiles of the repository.
    """
    package = folder / "vidur"
    if not (package / "simulator.py").is_file():
        raise VidurError(f"no Vidur in {folder}: {HOW_TO_GET}, then pass --vidur that folder")
    if sources_sha256(package) != SOURCES_SHA256:
        raise VidurError(f"the Vidur in {folder} is not the version that this command knows: {HOW_TO_GET}")
    if forests and not (profiles(folder) / "mlp.csv").is_file():
        raise VidurError(f"{profiles(folder)} has no mlp.csv, from which Vidur learns: get it, or pass --no-forests")
    if not python.is_file():
        raise VidurError(f"no Python at {python}: make an environment with `pip install {NEEDS}` and pass --python")


def profiles(folder: Path) -> Path:
    """Where Vidur keeps the kernel times that its own predictor learns from."""
    return folder / "data" / "profiling" / "compute" / vidur_driver.DEVICE / vidur_driver.MODEL


def sources_sha256(package: Path) -> str:
    """SHA-256 over relative path and content of every Python file of a package."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(path.relative_to(package.parent).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def load_requests(folder: Path, *, rate: float, count: int, seed: int) -> Load:
    """The first `count` pairs of lengths of Azure's conversation hour with Poisson arrivals.

    Raises DataFileError: the trace is missing, or shorter.
    """
    trace = formats.load(folder / LENGTHS)
    if not isinstance(trace, Trace) or len(trace) < count:
        raise DataFileError(f"{folder / LENGTHS} has no {count} requests: ask for fewer with --requests")
    return Load(
        arrival_seconds=arrivals.poisson(rate=rate, count=count, seed=seed),
        prompt_tokens=np.maximum(1, trace.prompt_tokens[:count]),
        output_tokens=np.maximum(1, trace.output_tokens[:count]),
    )


def replica_hardware(kv_blocks: int | None = None) -> ReplicaHardware:
    """The twin's replica of the comparison; `kv_blocks` usable blocks instead of what its memory holds."""
    engine = EngineSettings(
        max_num_seqs=MAX_NUM_SEQS, max_num_batched_tokens=MAX_NUM_BATCHED_TOKENS, enable_prefix_caching=False
    )
    found = hardware.replica_hardware(model=MODEL, accelerator=ACCELERATOR, engine=engine)
    return found if kv_blocks is None else replace(found, num_gpu_blocks=kv_blocks + 1)


def job(
    load: Load, spec: ReplicaHardware, *, predictor: str, metrics: bool, cache: Path, mended: bool = False
) -> dict[str, Any]:
    """What the driver reads."""
    return {
        "requests": load.rows(),
        "seconds": spec.levels[-1].seconds,
        "max_num_seqs": spec.max_num_seqs,
        "max_num_batched_tokens": spec.max_num_batched_tokens,
        "block_size": spec.block_size,
        "blocks": spec.num_gpu_blocks - 1,
        "predictor": predictor,
        "metrics": metrics,
        "mended": mended,
        "cache": str(cache),
    }


def play_vidur(settings: Settings, asked: dict[str, Any]) -> tuple[Played, str]:
    """One run of Vidur in its own process, and the version of its Python. VidurError where it fails."""
    with tempfile.TemporaryDirectory() as name:
        given, found = Path(name) / "job.json", Path(name) / "result.json"
        given.write_text(json.dumps(asked), encoding="utf-8")
        # -I: the driver's folder must not be searched for modules, one of its neighbours is named like Vidur.
        paths = [vidur_driver.__file__, settings.vidur.resolve(), given, found]
        command = [str(settings.python), "-I", *map(str, paths)]
        try:
            done = subprocess.run(  # noqa: S603 - the interpreter that the user named, our own script
                command, cwd=name, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise VidurError(f"Vidur did not run under {settings.python}: {error}") from error
        if done.returncode != 0 or not found.is_file():
            lines = done.stderr.strip().splitlines() or ["nothing was said"]
            raise VidurError(
                f"Vidur failed under {settings.python}: {lines[-1]}; for a missing module: `pip install {NEEDS}` there"
            )
        return parse(json.loads(found.read_text(encoding="utf-8")), count=len(asked["requests"]))


def parse(result: dict[str, Any], *, count: int) -> tuple[Played, str]:
    """What the driver wrote. VidurError: a request is missing or was not finished."""
    first = np.asarray(result["first_token_seconds"], dtype=np.float64)
    last = np.asarray(result["finish_seconds"], dtype=np.float64)
    # Zero is Vidur's mark of what never happened.
    finished = int(np.count_nonzero((first > 0.0) & (last >= first))) if first.shape == last.shape else 0
    if len(first) != count or finished != count:
        raise VidurError(f"Vidur finished {finished} of {count} requests: lower the rates or raise the KV blocks")
    played = Played(
        first_token_seconds=first,
        finish_seconds=last,
        cpu_seconds=float(result["cpu_seconds"]),
        wall_seconds=float(result["wall_seconds"]),
        evictions=int(result["restarts"]),
        steps=int(result["steps"]),
    )
    return played, str(result["python"])


def play_twin(load: Load, spec: ReplicaHardware, *, cap_watts: float | None) -> Played:
    """One run of the twin's replica; metrics and power are always on. Times are the engine's, without the front end."""
    requests = [Request(*row) for row in load.rows()]
    replica = Replica(spec, now=0.0)
    replica.set_power(cap_watts=cap_watts, clock_mhz=None)
    wall, cpu = time.perf_counter(), time.process_time()
    replica.submit(requests)
    replica.run(float(load.arrival_seconds[-1]) + _SETTLE_SECONDS)
    # Read within the time that is taken, so that sums which are only made when asked for are paid.
    evictions, answered, joules = (
        replica.counters.preemptions,
        replica.counters.e2e_seconds.count,
        replica.energy_joules,
    )
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    if answered != len(requests) or not joules > 0.0:
        raise VidurError(
            f"the twin answered {answered} of {len(requests)} requests; the others do not fit its KV memory"
        )
    ttft = np.array([request.ttft_seconds for request in requests])
    return Played(
        first_token_seconds=load.arrival_seconds + ttft - FRONT_END_SECONDS,
        finish_seconds=np.array([request.last_token for request in requests]),
        cpu_seconds=cpu,
        wall_seconds=wall,
        evictions=evictions,
    )


def run(settings: Settings, *, tell: Callable[[str], None] = lambda _: None) -> Result:
    """Compare and time, in turns; minutes. Raises VidurError and DataFileError."""
    check(settings.vidur, settings.python, forests=settings.forests)
    with tempfile.TemporaryDirectory() as name:
        cache = Path(name)
        agreements, python = _agree(settings, cache, tell)
        speeds = _speeds(settings, cache, tell)
    return Result(
        settings=settings,
        agreements=agreements,
        speeds=speeds,
        python=python,
        stand_in_profile=settings.forests and not (profiles(settings.vidur) / "attention.csv").is_file(),
    )


def _agree(settings: Settings, cache: Path, tell: Callable[[str], None]) -> tuple[tuple[Agreement, ...], str]:
    found, python = [], ""
    cases: list[tuple[float, int | None, bool]] = [(rate, None, False) for rate in settings.rates]
    middle = sorted(settings.rates)[len(settings.rates) // 2]
    cases += [(middle, blocks, mended) for blocks in settings.small_kv_blocks for mended in (False, True)]
    for rate, blocks, mended in cases:
        load = load_requests(settings.data, rate=rate, count=settings.requests, seed=settings.seed)
        spec = replica_hardware(blocks)
        tell(f"agreement: {rate:g} requests/s, {spec.num_gpu_blocks - 1} KV blocks")
        vidur, python = play_vidur(
            settings, job(load, spec, predictor=vidur_driver.COEFFICIENTS, metrics=True, mended=mended, cache=cache)
        )
        found.append(
            Agreement(
                rate=rate,
                kv_blocks=spec.num_gpu_blocks - 1,
                load=load,
                mended=mended,
                vidur=vidur,
                twin=play_twin(load, spec, cap_watts=_ALIGNED_WATTS),
            )
        )
    return tuple(found), python


_WAYS = {
    "the same step times, metrics on": (vidur_driver.COEFFICIENTS, True),
    "the same step times, Vidur's metrics off": (vidur_driver.COEFFICIENTS, False),
    "Vidur's own forests, metrics on": (vidur_driver.FORESTS, True),
}


def _speeds(settings: Settings, cache: Path, tell: Callable[[str], None]) -> tuple[Speed, ...]:
    spec, found = replica_hardware(), []
    for rate in settings.rates:
        whole = load_requests(settings.data, rate=rate, count=settings.requests, seed=settings.seed)
        for what, (predictor, metrics) in _WAYS.items():
            if predictor == vidur_driver.FORESTS and not settings.forests:
                continue
            load = whole.clipped(FOREST_TOKENS) if predictor == vidur_driver.FORESTS else whole
            theirs, ours, steps = [], [], 0
            for number in range(settings.rounds):
                tell(f"speed: {rate:g} requests/s, {what}, round {number + 1} of {settings.rounds}")
                asked = job(load, spec, predictor=predictor, metrics=metrics, cache=cache)
                played, _ = play_vidur(settings, asked)
                theirs.append(played.cpu_seconds)
                steps = played.steps or 0
                ours.append(_mean([play_twin(load, spec, cap_watts=None).cpu_seconds for _ in range(_PLAYS)]))
            scale = 1000.0 / settings.requests
            found.append(
                Speed(
                    rate=rate,
                    what=what,
                    vidur_seconds=tuple(scale * each for each in theirs),
                    twin_seconds=tuple(scale * each for each in ours),
                    steps_per_request=steps / settings.requests,
                )
            )
    return tuple(found)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
