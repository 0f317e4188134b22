"""What the simulated world is made of: cards, models, and the time and energy of one engine step at each clock.

The numbers, with their origin, are in `hardware.yaml`. One step of a replica takes

    t(r) = d0(r) + dN(r) decodes + dKV(r) kv + dT(r) prefill + dA(r) sum(chunk (history + chunk / 2))     [seconds]

and each of its GPUs spends `static_watts * t(r)` plus the same sum with joule coefficients, where r is the SM clock
over the highest clock. A share of each term scales with 1/r, the rest is bound by memory and slows down only below
`memory_bound` MHz; prefill runs power-throttled at the highest clock, so it loses nothing down to `prefill_at_tdp`.
Dynamic energy follows voltage squared by a share of its own.
"""

import bisect
import functools
import importlib.resources
import itertools
import math
import re
from dataclasses import dataclass
from typing import Any

import yaml

from wattkeeper.domain.engine import EngineSettings
from wattkeeper.domain.errors import UnknownAcceleratorError, UnknownModelError, WattkeeperError

Terms = tuple[float, float, float, float, float]
"""Of a step: fixed, per decode, per KV token, per prefill token, per token squared of prefill attention."""


class EngineStartError(WattkeeperError):
    """These engine arguments would stop vLLM at start-up."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """One GPU model; watts and MHz per GPU."""

    name: str
    dcgm_name: str
    memory_bytes: float
    tdp_watts: float
    minimum_cap_watts: float
    parked_watts: float
    """Powered, no process on it."""
    startup_watts: float
    """While an engine starts: weights, compilation, profiling."""
    maximum_clock_mhz: float
    minimum_clock_mhz: float
    default_max_num_seqs: int
    default_max_num_batched_tokens: int


@dataclass(frozen=True, kw_only=True)
class ClockLevel:
    """Coefficients of one step at one SM clock: seconds, and dynamic joules per GPU."""

    clock_mhz: float
    seconds: Terms
    joules: Terms


@dataclass(frozen=True, kw_only=True)
class ReplicaHardware:
    """All that a replica needs: levels from the lowest to the highest clock, limits and memory."""

    card: Card
    model: str
    gpus: int
    levels: tuple[ClockLevel, ...]
    static_watts: float
    idle_watts: float
    block_size: int
    num_gpu_blocks: int
    """As vLLM reports it; one of them is the null block and never holds tokens."""
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    prefix_caching: bool
    gpu_memory_utilization: float
    cache_dtype: str
    max_num_active_seqs: int | None = None
    """Admission limit below `max_num_seqs`; None: none."""
    max_queued_requests: int | None = None
    """A request that finds so many waiting is answered with 503; None: all may wait."""
    priorities: bool = False
    """Scheduling policy `priority` instead of first come first served."""
    prefix_block_tokens: int = 512
    """Tokens that one block id of a request stands for."""

    def level_at_most(self, clock_mhz: float | None) -> int:
        """Index of the highest level not above the lock; the lowest where the lock is below all."""
        if clock_mhz is None:
            return len(self.levels) - 1
        clocks = [level.clock_mhz for level in self.levels]
        return max(0, bisect.bisect_right(clocks, clock_mhz + 1e-6) - 1)


@functools.cache
def _tables() -> dict[str, Any]:
    text = importlib.resources.files(__package__).joinpath("hardware.yaml").read_text(encoding="utf-8")
    tables: dict[str, Any] = yaml.safe_load(text)
    return tables


def _number(value: Any) -> float:
    # YAML 1.1 reads "85.5e9" (no sign in the exponent) as a string.
    return float(value)


def _card_entry(name: str) -> tuple[str, dict[str, Any]]:
    wanted = re.sub(r"[\s_]+", "-", name).lower()
    for key, entry in _tables()["cards"].items():
        names = [key, entry["dcgm_name"], *entry["aliases"]]
        if wanted in {re.sub(r"[\s_]+", "-", each).lower() for each in names}:
            return key, entry
    known = ", ".join(sorted(_tables()["cards"]))
    raise UnknownAcceleratorError(f"the twin has no card {name!r}; it knows {known}")


@functools.cache
def card(name: str) -> Card:
    """A card by name, alias, node label or DCGM model name; UnknownAcceleratorError names the known ones."""
    key, entry = _card_entry(name)
    watts, clock = entry["watts"], entry["clock_mhz"]
    return Card(
        name=key,
        dcgm_name=entry["dcgm_name"],
        memory_bytes=_number(entry["memory_bytes"]),
        tdp_watts=_number(watts["tdp"]),
        minimum_cap_watts=_number(watts["minimum_cap"]),
        parked_watts=_number(watts["parked"]),
        startup_watts=_number(watts["startup"]),
        maximum_clock_mhz=_number(clock["maximum"]),
        minimum_clock_mhz=_number(clock["minimum"]),
        default_max_num_seqs=int(entry["default_max_num_seqs"]),
        default_max_num_batched_tokens=int(entry["default_max_num_batched_tokens"]),
    )


def models() -> tuple[str, ...]:
    """The models of the table; any other one is scaled from the nearest of them by the size in its name."""
    return tuple(_tables()["models"])


def _model_entry(model: str) -> dict[str, Any]:
    models: dict[str, dict[str, Any]] = _tables()["models"]
    if model in models:
        return models[model]
    size = re.search(r"(\d+(?:\.\d+)?)\s*[bB](?![a-zA-Z0-9])", model)
    if size is None:
        raise UnknownModelError(
            f"the twin does not know the model {model!r} and its name tells no size such as 13B; "
            f"it knows {', '.join(sorted(models))}"
        )
    parameters = float(size.group(1)) * 1e9
    nearest = min(models.values(), key=lambda each: abs(math.log(_number(each["parameters"]) / parameters)))
    # Layers and width both grow with size, so KV bytes grow like the square root of the parameters.
    scale = math.sqrt(parameters / _number(nearest["parameters"]))
    return {
        "parameters": parameters,
        "kv_bytes_per_token": round(_number(nearest["kv_bytes_per_token"]) * scale / 1024) * 1024,
        "max_model_len": nearest["max_model_len"],
    }


def voltage_ratio(clock_ratio: float) -> float:
    """Core voltage over the one at the highest clock; linear between the points of the table."""
    points = sorted((float(ratio), float(volts)) for ratio, volts in _tables()["voltage"].items())
    if clock_ratio <= points[0][0]:
        return points[0][1]
    for (r0, v0), (r1, v1) in itertools.pairwise(points):
        if clock_ratio <= r1:
            return v0 + (v1 - v0) * (clock_ratio - r0) / (r1 - r0)
    return points[-1][1]


_TERMS = ("d0", "decode", "kv", "prefill", "attention")


def _reference(*, parameters: float, gpus: int) -> dict[str, Any]:
    references = _tables()["references"].values()
    per_gpu = parameters / gpus
    nearest: dict[str, Any] = min(
        references, key=lambda ref: abs(math.log(_number(ref["parameters"]) / int(ref["gpus"]) / per_gpu))
    )
    return nearest


def _full_clock(
    *, parameters: float, kv_bytes: float, gpus: int, entry: dict[str, Any]
) -> tuple[dict[str, float], dict[str, float], float, float]:
    """Seconds, joules, static and idle watts at the highest clock, scaled from the nearest reference replica."""
    reference = _reference(parameters=parameters, gpus=gpus)
    origin = _tables()["cards"][reference["card"]]
    work = (parameters / gpus) / (_number(reference["parameters"]) / int(reference["gpus"]))
    kv_work = (kv_bytes / gpus) / (131072 if int(reference["gpus"]) == 1 else 81920)
    bandwidth = _number(origin["bandwidth_bytes_per_second"]) / _number(entry["bandwidth_bytes_per_second"])
    compute = _number(origin["bf16_flops"]) / _number(entry["bf16_flops"])
    power = _number(entry["watts"]["tdp"]) / _number(origin["watts"]["tdp"])
    host = float(_tables()["host_share_of_d0"])
    scale = {
        "d0": host + (1 - host) * work * bandwidth,
        "decode": work * compute,
        "kv": kv_work * bandwidth,
        "prefill": work * compute,
        "attention": kv_work * compute,
    }
    memory_or_compute = {"d0": bandwidth, "kv": bandwidth}
    seconds = {term: _number(reference["seconds"][term]) * scale[term] for term in _TERMS}
    work_scale = {"d0": work, "decode": work, "kv": kv_work, "prefill": work, "attention": kv_work}
    joules = {
        term: _number(reference["joules"][term]) * work_scale[term] * power * memory_or_compute.get(term, compute)
        for term in _TERMS
    }
    static, idle = _number(reference["static_watts"]) * power, _number(reference["idle_watts"]) * power
    return seconds, joules, static, idle


def _levels(*, seconds: dict[str, float], joules: dict[str, float], entry: dict[str, Any]) -> tuple[ClockLevel, ...]:
    clock, shares = entry["clock_mhz"], _tables()["clock"]
    top, step = _number(clock["maximum"]), _number(clock["step"])
    count = round((top - _number(clock["minimum"])) / step)
    throttled = _number(clock["prefill_at_tdp"]) / top
    levels = []
    for index in range(count, -1, -1):
        mhz = top - index * step
        ratio = mhz / top
        memory = max(1.0, _number(clock["memory_bound"]) / mhz)

        def mixed(term: str, share: float, ratio: float = ratio, memory: float = memory) -> float:
            return seconds[term] * (share / ratio + (1 - share) * memory)

        prefill_slowdown = max(1.0, throttled / ratio)
        decode_volts = float(shares["decode_voltage_share"])
        prefill_volts = float(shares["prefill_voltage_share"])
        decode_energy = 1 - decode_volts + decode_volts * voltage_ratio(ratio) ** 2
        lowered = (voltage_ratio(min(ratio, throttled)) / voltage_ratio(throttled)) ** 2
        prefill_energy = 1 - prefill_volts + prefill_volts * lowered
        levels.append(
            ClockLevel(
                clock_mhz=mhz,
                seconds=(
                    mixed("d0", float(shares["d0_share"])),
                    mixed("decode", float(shares["decode_share"])),
                    mixed("kv", float(shares["kv_share"])),
                    seconds["prefill"] * prefill_slowdown,
                    seconds["attention"] * prefill_slowdown,
                ),
                joules=(
                    joules["d0"] * decode_energy,
                    joules["decode"] * decode_energy,
                    joules["kv"] * decode_energy,
                    joules["prefill"] * prefill_energy,
                    joules["attention"] * prefill_energy,
                ),
            )
        )
    return tuple(levels)


def replica_hardware(*, model: str, accelerator: str, engine: EngineSettings) -> ReplicaHardware:
    """One replica as vLLM would start it with these settings.

    `engine` fields that are None take vLLM's default for the card. Raises UnknownModelError, UnknownAcceleratorError,
    or EngineStartError where vLLM itself would refuse to start.
    """
    _, entry = _card_entry(accelerator)
    spec = card(accelerator)
    parameters = _model_entry(model)
    gpus = engine.tensor_parallel_size * engine.pipeline_parallel_size
    weights = _number(parameters["parameters"])
    kv_bytes = _number(parameters["kv_bytes_per_token"])
    seconds, joules, static, idle = _full_clock(parameters=weights, kv_bytes=kv_bytes, gpus=gpus, entry=entry)
    dtype = engine.kv_cache_dtype or "auto"
    if dtype.startswith("fp8"):
        kv_bytes /= 2
        seconds["kv"] /= 2
        joules["kv"] /= 2
    block_size = engine.block_size or 16
    utilization = engine.gpu_memory_utilization or 0.92
    if engine.kv_cache_memory_bytes is not None:
        kv_memory = float(engine.kv_cache_memory_bytes)
    else:
        # 4e9 bytes per GPU: activations at peak and CUDA graphs.
        kv_memory = spec.memory_bytes * utilization - 2.0 * weights / gpus - 4e9
    blocks = int(kv_memory // (kv_bytes / gpus * block_size))
    batched = engine.max_num_batched_tokens or spec.default_max_num_batched_tokens
    sequences = engine.max_num_seqs or min(spec.default_max_num_seqs, batched)
    model_len = engine.max_model_len or int(parameters["max_model_len"])
    if batched < sequences:
        raise EngineStartError(
            f"max_num_batched_tokens ({batched}) must be at least max_num_seqs ({sequences}): raise the first or lower "
            "the second"
        )
    if (blocks - 1) * block_size < model_len:
        raise EngineStartError(
            f"the KV cache holds {max(0, blocks - 1) * block_size} tokens, less than one request of max_model_len "
            f"({model_len}): raise gpu_memory_utilization or kv_cache_memory_bytes, or lower max_model_len"
        )
    return ReplicaHardware(
        card=spec,
        model=model,
        gpus=gpus,
        levels=_levels(seconds=seconds, joules=joules, entry=entry),
        static_watts=static,
        idle_watts=idle,
        block_size=block_size,
        num_gpu_blocks=blocks,
        max_model_len=model_len,
        max_num_seqs=sequences,
        max_num_batched_tokens=batched,
        prefix_caching=engine.enable_prefix_caching is not False,
        gpu_memory_utilization=utilization,
        cache_dtype=dtype,
        max_num_active_seqs=engine.max_num_active_seqs,
    )
