"""Lengths and arrivals of recorded traffic, from the folder of public data, and stand-ins where there is none.

Files (none is shipped): Azure's 2023 LLM inference traces, Mooncake's conversation trace, and token counts of ShareGPT.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wattkeeper.domain.errors import DataFileError
from wattkeeper.domain.workload import FloatArray
from wattkeeper.replica.types import IntArray
from wattkeeper.traces import formats
from wattkeeper.traces.trace import Lengths, Trace

AZURE_CONVERSATION = "traces/azure-2023/AzureLLMInferenceTrace_conv.csv"
AZURE_CODE = "traces/azure-2023/AzureLLMInferenceTrace_code.csv"
MOONCAKE = "traces/mooncake/conversation_trace.jsonl"
SHAREGPT = "traces/sharegpt/sharegpt_val_10k_llama2_lengths.csv"
TREND_SECONDS = 300.0
"""What a forecast follows: slower changes of the rate than this are taken out of a detrended recording."""


@dataclass(frozen=True, kw_only=True)
class Recording:
    """Arrival times of one recorded hour."""

    name: str
    times_seconds: FloatArray


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """What the test grid draws from."""

    lengths: tuple[Lengths, ...]
    recordings: tuple[Recording, ...]
    recorded: bool
    """False: all lengths are synthetic, because there was no data folder."""


def recorded(folder: Path) -> Traffic:
    """From the data folder; DataFileError where a file is missing or of another form."""
    conversation, code, mooncake = (_trace(folder / name) for name in (AZURE_CONVERSATION, AZURE_CODE, MOONCAKE))
    hours = {"azure-conv": conversation.times_seconds, "azure-code": code.times_seconds}
    recordings = []
    for name, times in hours.items():
        recordings.append(Recording(name=name, times_seconds=times))
        recordings.append(Recording(name=f"{name} detrended", times_seconds=detrended(times)))
    return Traffic(
        lengths=(
            _lengths("azure-conv", conversation),
            _lengths("azure-code", code),
            formats.sharegpt(folder / SHAREGPT),
            _lengths("mooncake", mooncake),
            _fixed(512, 20),
        ),
        recordings=tuple(recordings),
        recorded=True,
    )


def synthetic(*, seed: int) -> Traffic:
    """Lognormal lengths with about the means of the recorded ones, and no recorded arrivals."""
    rng = np.random.default_rng((seed, 9))
    return Traffic(
        lengths=(
            _lognormal(rng, "synthetic conversation", prompt=1150.0, output=210.0),
            _lognormal(rng, "synthetic code", prompt=2050.0, output=28.0),
            _lognormal(rng, "synthetic chat", prompt=250.0, output=230.0),
            _lognormal(rng, "synthetic long prompts", prompt=12_000.0, output=340.0),
            _fixed(512, 20),
        ),
        recordings=(),
        recorded=False,
    )


def detrended(times_seconds: FloatArray, *, trend_seconds: float = TREND_SECONDS) -> FloatArray:
    """The same arrivals on a clock that runs with their rate over `trend_seconds`: only faster changes are left.

    The mean rate stays.
    """
    span = float(times_seconds[-1] - times_seconds[0])
    parts = max(1, round(span / trend_seconds))
    edges = np.linspace(times_seconds[0], times_seconds[-1], parts + 1)
    expected = np.searchsorted(times_seconds, edges, side="right").astype(np.float64)
    expected[0] = 0.0
    return np.asarray(np.interp(times_seconds, edges, expected) * span / len(times_seconds))


def _trace(path: Path) -> Trace:
    found = formats.load(path)
    if not isinstance(found, Trace):
        raise DataFileError(f"{path} holds rates, expected requests")
    return found


def _lengths(name: str, trace: Trace) -> Lengths:
    return Lengths(name=name, prompt_tokens=trace.prompt_tokens, output_tokens=trace.output_tokens)


def _fixed(prompt: int, output: int) -> Lengths:
    return Lengths(
        name=f"p{prompt}d{output}",
        prompt_tokens=np.array([prompt], dtype=np.int64),
        output_tokens=np.array([output], dtype=np.int64),
    )


def _lognormal(rng: np.random.Generator, name: str, *, prompt: float, output: float) -> Lengths:
    def tokens(mean: float, sigma: float) -> IntArray:
        drawn = mean * np.exp(sigma * rng.standard_normal(8192) - 0.5 * sigma * sigma)
        return np.asarray(np.clip(np.rint(drawn), 1, 60_000), dtype=np.int64)

    return Lengths(name=name, prompt_tokens=tokens(prompt, 1.0), output_tokens=tokens(output, 0.8))
