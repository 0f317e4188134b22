"""Scrapes of live engines for `wattkeeper fit iteration --source live`: pages over HTTP, or a folder of saved ones."""

import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np

from wattkeeper.api.model_profile import ProfileProvenance
from wattkeeper.cli.fit_sources import Fitted
from wattkeeper.domain.errors import TelemetryError
from wattkeeper.physics import fitting, host, refit
from wattkeeper.physics.fitting import FitError
from wattkeeper.physics.profile import IterationCoefficients
from wattkeeper.physics.step_windows import EngineSample, StepWindow, WindowProblem, between, resident_tokens
from wattkeeper.telemetry import aliases, assemble
from wattkeeper.telemetry.engine import Series
from wattkeeper.telemetry.exposition import ExpositionReader

_ITL = ("inter_token_latency_seconds", "time_per_output_token_seconds")
_ITERATION = ("iteration_tokens_total",)
_LENGTHS = {"prompt": ("request_prompt_tokens",), "output": ("request_generation_tokens",)}
_COUNTERS = {"generation_tokens": aliases.GENERATION_TOKENS, "preemptions": aliases.PREEMPTIONS}
_GAUGES = {"running": aliases.RUNNING, "kv_usage": aliases.KV_USAGE}
_TIMEOUT_SECONDS = 5.0
_BLOCK_TOKENS = 16


@dataclass(frozen=True, kw_only=True)
class LiveWindows:
    """What the scrapes of all engines say."""

    windows: tuple[StepWindow, ...]
    problems: dict[WindowProblem, int]
    prompt_tokens: float
    """Mean of the requests that ended between the scrapes; of all that ended before where none did."""
    output_tokens: float


Page = tuple[float, str, str]
"""(time in seconds, origin, text)."""


def scrape(
    urls: Sequence[str],
    *,
    seconds: float,
    every: float,
    tell: Callable[[str], None],
    clock: Callable[[], float] = time.time,
    sleep: Callable[[float], None] = time.sleep,
) -> list[Page]:
    """Pages of all URLs, every so many seconds for so long. A scrape that fails is told and left out.

    Raises TelemetryError: a URL never answered.
    """
    pages: list[Page] = []
    failure: dict[str, str] = {}
    begin = clock()
    with httpx.Client(timeout=_TIMEOUT_SECONDS) as client:
        for count in range(int(seconds // every) + 1):
            sleep(max(begin + count * every - clock(), 0.0))
            for url in urls:
                try:
                    answer = client.get(url)
                    answer.raise_for_status()
                except httpx.HTTPError as error:
                    failure[url] = str(error) or type(error).__name__
                    tell(f"{url}: {failure[url]}")
                    continue
                pages.append((clock(), url, answer.text))
    silent = [url for url in urls if not any(origin == url for _, origin, _ in pages)]
    if silent:
        raise TelemetryError(f"{silent[0]} never answered ({failure[silent[0]]}): give the address of vLLM's /metrics")
    return pages


def saved(folder: Path) -> list[Page]:
    """Saved pages of one pod: files named by the time of the scrape in seconds ("1764280000.5.txt").

    Raises TelemetryError: no folder, fewer than two pages, or a name that is no time.
    """
    if not folder.is_dir():
        raise TelemetryError(f"{folder} is no folder of saved /metrics pages")
    pages: list[Page] = []
    for path in sorted(folder.iterdir()):
        try:
            pages.append((float(path.stem), folder.name, path.read_text(encoding="utf-8")))
        except ValueError:
            raise TelemetryError(f"{path}: the name of a page is the time of its scrape in seconds") from None
    if len(pages) < 2:
        raise TelemetryError(f"{folder} has {len(pages)} pages: steps are what lies between two of them")
    return sorted(pages)


def windows(pages: Iterable[Page], *, prefixes: Sequence[str] = ("vllm:",)) -> LiveWindows:
    """Windows between consecutive pages of each engine.

    Raises TelemetryError: a page is no metrics page, or lacks a series.
    """
    reader = ExpositionReader(_wanted(prefixes))
    samples: dict[tuple[str, str], list[EngineSample]] = {}
    lengths: list[dict[str, tuple[float, float]]] = []
    for at, origin, text in pages:
        try:
            series = reader.read(text)
        except ValueError as error:
            raise TelemetryError(f"{origin}: not a page of metrics ({error})") from error
        lengths.append({name: _histogram(series, names, prefixes, None) for name, names in _LENGTHS.items()})
        for engine in _engines(series, prefixes, origin):
            samples.setdefault((origin, engine), []).append(_sample(series, prefixes, engine, at, origin))
    found: list[StepWindow] = []
    problems: dict[WindowProblem, int] = {}
    for own in samples.values():
        for before, after in itertools.pairwise(own):
            window = between(before, after)
            if isinstance(window, StepWindow):
                found.append(window)
            else:
                problems[window] = problems.get(window, 0) + 1
    prompt, output = (_mean(lengths, name) for name in _LENGTHS)
    return LiveWindows(windows=tuple(found), problems=problems, prompt_tokens=prompt, output_tokens=output)


def fitted(live: LiveWindows, *, prior: IterationCoefficients, model: str, accelerator: str, gpus: int) -> Fitted:
    """Coefficients refitted to the windows, starting from `prior`.

    Raises FitError: too few windows, or windows that the form does not describe.
    """
    state = refit.Refit(prior=prior)
    pairs = live.prompt_tokens / 2.0
    for window in live.windows:
        state = state.observe(window, answer_tokens=live.output_tokens, products_per_prefill_token=pairs)
    estimate = state.estimate()
    left_out = ", ".join(f"{count} {problem.value}" for problem, count in live.problems.items()) or "none"
    if estimate.status in (refit.RefitStatus.TOO_FEW_WINDOWS, refit.RefitStatus.POOR_FIT):
        raise FitError(
            f"{estimate.status.value}: {estimate.windows} usable windows (left out: {left_out}), spread "
            f"{estimate.spread:.0%}. Scrape for longer and under a load of at least 3 decoding requests, every 2 to 5 s"
        )
    found = fitting.assessed(_rows(live, pairs), _terms(estimate), condition=estimate.condition_number)
    notes = [f"{estimate.status.value}: {estimate.windows} windows, left out: {left_out}"]
    if estimate.weak:
        notes.append(
            f"the load hardly tells {', '.join(estimate.weak)}: taken from the catalogue, at the level measured"
        )
    return Fitted(
        model=model,
        accelerator=accelerator,
        gpus=gpus,
        fit=found,
        overhead=host.NO_OVERHEAD,
        relative_error=max(found.relative_error, estimate.spread),
        source=f"scrapes of a live engine, {len(live.windows)} windows",
        notes=tuple(notes),
        end_to_end=True,
        provenance=ProfileProvenance.MEASURED,
    )


def _rows(live: LiveWindows, pairs: float) -> fitting.StepRows:
    names = ("prefill_tokens", "decode_sequences", "kv_tokens", "step_seconds")
    prefill, decodes, kv_tokens, seconds = (
        np.array([getattr(window, name) for window in live.windows]) for name in names
    )
    return fitting.StepRows(
        prefill_tokens=prefill,
        decode_sequences=decodes,
        kv_tokens=kv_tokens,
        attention_products=prefill * pairs,
        seconds=seconds,
    )


def _terms(estimate: refit.Estimate) -> dict[str, fitting.Term]:
    iteration, errors = estimate.iteration, estimate.standard_errors
    values = {
        "d0": (iteration.d0_seconds, "d0"),
        "dt": (iteration.dt_seconds_per_token, "dT"),
        "dn": (iteration.decode_seconds_per_sequence, "dT"),
        "dkv": (iteration.dkv_seconds_per_kv_token, "dKV"),
        "da": (iteration.da_seconds_per_token_squared, "dT"),
    }
    return {
        name: fitting.Term(
            value=value, standard_error=errors.get(group), fitted=group in errors, pulled=group in estimate.weak
        )
        for name, (value, group) in values.items()
    }


def _wanted(prefixes: Sequence[str]) -> set[str]:
    histograms = [*_ITL, *_ITERATION, *itertools.chain.from_iterable(_LENGTHS.values())]
    names = {prefix + name + part for prefix in prefixes for name in histograms for part in ("_sum", "_count")}
    for canonical in (*_COUNTERS.values(), *_GAUGES.values(), aliases.CACHE_INFO):
        names |= set(aliases.full_names(aliases.ENGINE_METRICS[canonical], prefixes))
    return names


def _engines(series: Series, prefixes: Sequence[str], origin: str) -> list[str]:
    names = [prefix + name + "_count" for prefix in prefixes for name in _ITERATION]
    found = {labels.get("engine", "0") for name in names for labels, _ in series.get(name, ())}
    if not found:
        raise TelemetryError(
            f"{origin} has no series {names[0]}: is it a vLLM engine (0.8 or newer) without --disable-log-stats?"
        )
    return sorted(found)


def _sample(series: Series, prefixes: Sequence[str], engine: str, at: float, origin: str) -> EngineSample:
    counters = {name: _value(series, canonical, prefixes, engine, origin) for name, canonical in _COUNTERS.items()}
    gauges = {name: _value(series, canonical, prefixes, engine, origin) for name, canonical in _GAUGES.items()}
    itl_sum, itl_count = _histogram(series, _ITL, prefixes, engine)
    tokens_sum, tokens_count = _histogram(series, _ITERATION, prefixes, engine)
    capacity, block = _cache(series, prefixes, engine)
    return EngineSample(
        time_seconds=at,
        inter_token_seconds_sum=itl_sum,
        inter_token_count=itl_count,
        iteration_tokens_sum=tokens_sum,
        iteration_count=tokens_count,
        generation_tokens=counters["generation_tokens"],
        preemptions=counters["preemptions"],
        running=gauges["running"],
        kv_tokens=resident_tokens(
            kv_usage=gauges["kv_usage"], capacity_tokens=capacity, running=gauges["running"], block_size=block
        ),
    )


def _value(series: Series, canonical: str, prefixes: Sequence[str], engine: str, origin: str) -> float:
    for name in aliases.full_names(aliases.ENGINE_METRICS[canonical], prefixes):
        values = [value for labels, value in series.get(name, ()) if labels.get("engine", "0") == engine]
        if values:
            return sum(values)
    raise TelemetryError(f"{origin} has no series for {canonical} of engine {engine}: see docs/metrics-read.md")


def _histogram(
    series: Series, names: Sequence[str], prefixes: Sequence[str], engine: str | None
) -> tuple[float, float]:
    """(sum, count) of the first of the names that is there; zeros where none is."""
    for full in (prefix + name for name in names for prefix in prefixes):
        parts = [
            [value for labels, value in series.get(full + part, ()) if engine in (None, labels.get("engine", "0"))]
            for part in ("_sum", "_count")
        ]
        if all(parts):
            return sum(parts[0]), sum(parts[1])
    return 0.0, 0.0


def _cache(series: Series, prefixes: Sequence[str], engine: str) -> tuple[float, float]:
    """(tokens that fit, tokens of a block); zeros where the engine does not say."""
    for name in aliases.full_names(aliases.ENGINE_METRICS[aliases.CACHE_INFO], prefixes):
        for labels, _ in series.get(name, ()):
            if labels.get("engine", engine) != engine:
                continue
            info = assemble.cache_info(labels)
            block = info.block_size or _BLOCK_TOKENS
            if info.size_tokens is not None:
                return float(info.size_tokens), float(block)
            if info.num_gpu_blocks is not None:
                return float(max(info.num_gpu_blocks - 1, 0) * block), float(block)
    return 0.0, float(_BLOCK_TOKENS)


def _mean(lengths: Sequence[dict[str, tuple[float, float]]], name: str) -> float:
    first, last = lengths[0][name], lengths[-1][name]
    total, count = last[0] - first[0], last[1] - first[1]
    if count <= 0:
        total, count = last
    return total / count if count > 0 else 0.0
