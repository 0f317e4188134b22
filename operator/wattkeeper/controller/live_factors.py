"""Every factor of the energy system for one live service: its value, or why there is none.

From what a pass of the loop decides on: the observation and the readings of the pods behind it, engine arguments,
limits, profile, and the operating point that the queueing model gives what is in place. Nothing is filled in silently:
a value that stands in for a measurement has a note that says so.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from wattkeeper.api.conditions import ConditionType
from wattkeeper.controller.service import Service
from wattkeeper.domain.arrivals import POISSON
from wattkeeper.domain.histogram import Histogram
from wattkeeper.domain.observation import GpuReading, PodReading, ServiceObservation
from wattkeeper.domain.plan import Target
from wattkeeper.domain.workload import LengthDistribution, Workload
from wattkeeper.energy import factor_schema, factors, points
from wattkeeper.energy.factor_kinds import Known
from wattkeeper.energy.points import OperatingPoints
from wattkeeper.physics import kv, limits
from wattkeeper.physics.profile import ServingProfile
from wattkeeper.telemetry import aliases

_NAMED_PODS = 3
_DEFAULT = "not set in the arguments: vLLM's default for this card"
_VERSIONS = "docs/metrics-read.md lists the versions that do"
_KEPLER = "kepler:"
"""Begin of the identity of watts that belong to a pod and to no card."""

_NAMES = tuple(each.name for each in factor_schema.everything())

Found = tuple[float | str | None, str]
"""A value and a note; None: the note says why."""


@dataclass(frozen=True, kw_only=True)
class LiveFactor:
    """One factor as it is now."""

    name: str
    value: float | str | None
    """In the unit of the schema."""
    note: str = ""
    """Why there is no value; else what it rests on where that is not plain."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a pass knows of a service."""

    service: Service
    observation: ServiceObservation | None
    readings: Mapping[str, PodReading]
    """By pod; those of the service's ready pods that the snapshot has."""
    current: Target
    standing: OperatingPoints | None
    """One row: what is in place under the measured traffic; None where nothing could be predicted."""

    @property
    def workload(self) -> Workload | None:
        """The measured traffic, where measurements may be used."""
        usable = self.observation is not None and self.observation.state.usable
        return self.observation.workload if usable and self.observation is not None else None

    @property
    def unmeasured(self) -> str:
        """Why nothing measured can be told."""
        if self.observation is None:
            return "nothing was measured yet"
        return self.observation.message or "no request was finished yet, so that lengths are not known"

    @property
    def unprofiled(self) -> str:
        """Why model and card are not known."""
        kinds = (ConditionType.MODEL_TRUSTED, ConditionType.TARGET_RESOLVED)
        found = next((each.message for each in self.service.problems if each.condition in kinds), None)
        return found or "model and card are not resolved"


def assemble(seen: Seen) -> tuple[LiveFactor, ...]:
    """All factors of the schema, in its order."""
    found = {**_kv_cache(seen), **_scheduling(seen), **_system(seen), **_traffic(seen), **_learned(seen)}
    return tuple(LiveFactor(name=name, value=found[name][0], note=found[name][1]) for name in _NAMES)


def _learned(seen: Seen) -> dict[str, Found]:
    """Factors that the model learns from, as the model itself works them out."""
    profile, workload = seen.service.profile, seen.workload
    if profile is None:
        return {factor.name: (None, seen.unprofiled) for factor in factors.FACTORS}
    lengths = (1.0, 1.0)
    if workload is not None:
        lengths = (max(workload.prompt.mean * (1.0 - workload.prefix_hit_ratio), 1.0), max(workload.output.mean, 1.0))
    carrier = points.closed_loop(
        profile,
        batch=np.ones(1),
        prompt_tokens=np.array([lengths[0]]),
        output_tokens=np.array([lengths[1]]),
        multimodal=np.zeros(1),
    )
    standing = None if seen.standing is None else (seen.standing, seen.standing.busy_watts)
    plain = carrier, carrier.busy_watts
    found: dict[str, Found] = {}
    for factor in factors.FACTORS:
        state = standing if factor.known is Known.PREDICTED else plain
        if factor.known is Known.OBSERVED and workload is None:
            found[factor.name] = (None, seen.unmeasured)
        elif state is None:
            found[factor.name] = (None, _unpredicted(seen))
        else:
            value = float(np.ravel(factor.value(*state))[0])
            unsteady = "the replicas cannot keep up with the traffic: there is no steady state to predict"
            found[factor.name] = (value, "") if math.isfinite(value) else (None, unsteady)
    found["multimodal"] = (None, "vLLM's metrics do not tell whether requests carry images: the model takes none")
    return found


def _unpredicted(seen: Seen) -> str:
    if seen.workload is None:
        return f"not predicted: {seen.unmeasured}"
    return "not predicted: no replica is ready" if not seen.service.ready_replicas else "not predicted in this pass"


def _kv_cache(seen: Seen) -> dict[str, Found]:
    service, observation = seen.service, seen.observation
    live = None if observation is None else observation.kv_cache
    none_serves = _absent(seen, aliases.CACHE_INFO, lambda reading: reading.kv_cache is not None)
    block, dtype = service.engine.block_size, service.engine.kv_cache_dtype
    told = live is not None and (live.size_tokens or (live.num_gpu_blocks and live.block_size))
    if live is not None:
        block, dtype = block or live.block_size, dtype or live.cache_dtype
    preemptions = _of_observation(
        seen,
        lambda now: now.preemptions_per_second,
        aliases.PREEMPTIONS,
        lambda reading: reading.preemptions_per_second is not None,
    )
    hits = _hit_ratio(seen)
    return {
        "kv_capacity_tokens": (None, seen.unprofiled)
        if service.profile is None
        else (
            kv.capacity_tokens(service.profile, service.engine, live),
            "" if told else f"worked out from the memory of the card: {none_serves}",
        ),
        "kv_cache_dtype": (dtype, "" if dtype else f"not set in the arguments, and {none_serves}"),
        "block_size": (block, "" if block else f"not set in the arguments, and {none_serves}"),
        "recent_preemptions": preemptions,
        "preemptions": preemptions,
        "recent_kv_usage": _of_observation(
            seen,
            lambda now: now.kv_usage_max,
            aliases.KV_USAGE,
            lambda reading: reading.kv_usage is not None,
        ),
        "prefix_hit_ratio": hits,
        "realised_hit_ratio": hits,
    }


def _hit_ratio(seen: Seen) -> Found:
    counted = [
        reading
        for reading in seen.readings.values()
        if reading.prefix_queries_per_second is not None and reading.prefix_hits_per_second is not None
    ]
    if seen.workload is None:
        return None, seen.unmeasured
    if not counted:
        none_serves = _absent(seen, aliases.PREFIX_QUERIES, lambda reading: reading in counted)
        return None, f"{none_serves}: plans take {seen.workload.prefix_hit_ratio:.3g}"
    asked = any(reading.prefix_queries_per_second for reading in counted)
    return seen.workload.prefix_hit_ratio, "" if asked else "no prompt came in the window: the ratio last seen"


def _scheduling(seen: Seen) -> dict[str, Found]:
    service, engine, observation = seen.service, seen.service.engine, seen.observation
    profile = service.profile
    found: dict[str, Found] = {
        name: (None, seen.unprofiled)
        if profile is None
        else (float(limit(engine, profile.gpu)), "" if getattr(engine, name) is not None else _DEFAULT)
        for name, limit in (
            ("max_num_batched_tokens", limits.max_num_batched_tokens),
            ("max_num_seqs", limits.max_num_seqs),
        )
    }
    running = _of_observation(
        seen, lambda now: now.running, aliases.RUNNING, lambda reading: reading.running is not None
    )
    if observation is not None and isinstance(running[0], float) and observation.pods_reporting:
        running = (running[0] / observation.pods_reporting, running[1])
    policy = service.scheduling_policy
    return {
        **found,
        "policy": (policy, "" if policy else "not set in the arguments, or not readable there; vLLM's default is fcfs"),
        "priority": (None, "each request carries its own, and no metric of vLLM tells it"),
        "tensor_parallel": (float(engine.tensor_parallel_size), ""),
        "pipeline_parallel": (float(engine.pipeline_parallel_size), ""),
        "data_parallel": (float(engine.data_parallel_size), ""),
        "mig_slice": _mig(seen),
        "realised_batch": running,
        "measured_inter_token_seconds": _token_seconds(seen),
    }


def _token_seconds(seen: Seen) -> Found:
    merged = Histogram.merge([each.tpot_seconds for each in seen.readings.values() if each.tpot_seconds is not None])
    if merged is None:
        return None, _absent(seen, aliases.TPOT, lambda reading: reading.tpot_seconds is not None)
    return (merged.mean, "mean of finished requests") if merged.mean is not None else (None, "no request was finished")


def _mig(seen: Seen) -> Found:
    cards = _cards(seen)
    if not cards:
        return None, _no_gpu(seen)
    slices = sorted({gpu.uuid.partition("/")[2] for gpu in cards if "/" in gpu.uuid})
    if not slices:
        return "off", ""
    return ", ".join(slices), "GPU instances by number; the watts of a slice are not known, only those of its card"


def _system(seen: Seen) -> dict[str, Found]:
    service, profile, current = seen.service, seen.service.profile, seen.current
    return {
        **(
            dict.fromkeys(("power_cap", "clock_ratio", "gpu", "host_seconds_per_step"), (None, seen.unprofiled))
            if profile is None
            else _limits(seen, profile, current)
        ),
        "replicas": (float(service.ready_replicas), ""),
        "gpu_utilisation": _of_cards(seen, lambda gpu: gpu.utilisation, aliases.GPU_USE),
        "gpu_temperature": _of_cards(seen, lambda gpu: gpu.temperature_celsius, aliases.GPU_TEMPERATURE),
        "realised_clock": _of_cards(seen, lambda gpu: gpu.sm_clock_mhz, aliases.GPU_CLOCK),
    }


def _of_cards(seen: Seen, value: Callable[[GpuReading], float | None], metric: str) -> Found:
    """Mean over the cards that show it."""
    cards = _cards(seen)
    if not cards:
        return None, _no_gpu(seen)
    shown = [found for gpu in cards if (found := value(gpu)) is not None]
    if not shown:
        return None, f"no exporter serves {aliases.DCGM_METRICS[metric].names[0]} of these GPUs"
    every = "" if len(shown) == len(cards) else f" of {len(cards)}"
    return sum(shown) / len(shown), f"mean of {len(shown)}{every} GPU{'s' if len(cards) > 1 else ''}"


def _limits(seen: Seen, profile: ServingProfile, current: Target) -> dict[str, Found]:
    """Power limit and clock that are asked for, and what the catalogue says of card and host."""
    ratio: Found = (
        (1.0, "not locked")
        if current.clock_mhz is None
        else (current.clock_mhz / profile.gpu.max_clock_mhz, "of the lock")
    )
    host: Found = (None, _unpredicted(seen))
    if seen.standing is not None:
        ratio = (float(seen.standing.clock_ratio[0]), "predicted: what lock, cap and load leave")
        batch = float(seen.standing.batch[0])
        host = (
            profile.iteration.host_seconds + profile.iteration.host_seconds_per_sequence * batch,
            "as the profile says, not measured on this host",
        )
    if not profile.iteration.host_seconds:
        host = (None, "the profile was fitted to whole steps: their time has the host's part inside")
    cap = current.power_cap_watts
    return {
        "power_cap": (cap or profile.gpu.tdp_watts, "" if cap else "no cap is asked for: the card's own limit"),
        "clock_ratio": ratio,
        "gpu": (profile.gpu.name, ""),
        "host_seconds_per_step": host,
    }


def _traffic(seen: Seen) -> dict[str, Found]:
    workload, observation = seen.workload, seen.observation
    tokens = _of_observation(
        seen,
        lambda now: now.output_tokens_per_second,
        aliases.GENERATION_TOKENS,
        lambda reading: reading.generation_tokens_per_second is not None,
    )
    if observation is not None and isinstance(tokens[0], float) and observation.pods_reporting:
        tokens = (tokens[0] / observation.pods_reporting, tokens[1])
    found: dict[str, Found] = {
        "complexity": (None, "no engine reports it"),
        "measured_tokens_per_second": tokens,
    }
    measured = ("requests_per_second", "rate_volatility", "burstiness")
    if workload is None:
        spreads = [f"{name}_{what}" for name in ("prompt", "output") for what in ("spread", "tokens_p95")]
        return {**found, **dict.fromkeys((*measured, *spreads), (None, seen.unmeasured))}
    dispersion = workload.dispersion
    few = "too few arrivals were counted: plans take them as Poisson"
    partial = observation is not None and observation.pods_reporting < observation.pods_expected
    return {
        **found,
        "requests_per_second": (
            workload.requests_per_second,
            "pods that do not report are taken to get what the others do" if partial else "",
        ),
        "rate_volatility": (None, few) if dispersion == POISSON else (float(dispersion.at(60.0)), ""),
        "burstiness": (None, few) if dispersion == POISSON else (float(dispersion.at(1.0)), ""),
        **_lengths("prompt", workload.prompt, [each.prompt_tokens for each in seen.readings.values()]),
        **_lengths("output", workload.output, [each.output_tokens for each in seen.readings.values()]),
    }


def _lengths(name: str, lengths: LengthDistribution, shown: list[Histogram | None]) -> dict[str, Found]:
    note = "" if any(each is not None and each.count > 0 for each in shown) else "as last seen: none finished lately"
    variance = max(lengths.second_moment - lengths.mean**2, 0.0)
    return {
        f"{name}_spread": (math.sqrt(variance) / lengths.mean, note),
        f"{name}_tokens_p95": (lengths.quantile(0.95), note),
    }


def _of_observation(
    seen: Seen,
    value: Callable[[ServiceObservation], float | None],
    metric: str,
    serves: Callable[[PodReading], bool],
) -> Found:
    """A measured value; where there is none, which pods do not serve the metric."""
    if seen.observation is None or not seen.observation.state.usable:
        return None, seen.unmeasured
    found = value(seen.observation)
    return (None, _absent(seen, metric, serves)) if found is None else (float(found), "")


def _absent(seen: Seen, metric: str, serves: Callable[[PodReading], bool]) -> str:
    """Which pods do not serve a metric of the engine."""
    if not seen.readings:
        return seen.unmeasured
    silent = [pod for pod, reading in sorted(seen.readings.items()) if not serves(reading)]
    verb = "serve" if len(silent) > 1 else "serves"
    return f"{_pods(silent)} {verb} no {aliases.ENGINE_METRICS[metric].names[0]} ({_VERSIONS})"


def _cards(seen: Seen) -> list[GpuReading]:
    """GPUs that an exporter or an agent shows one by one."""
    shown = () if seen.observation is None else seen.observation.gpus
    return [gpu for gpu in shown if not gpu.uuid.startswith(_KEPLER)]


def _no_gpu(seen: Seen) -> str:
    known = {} if seen.observation is None else seen.observation.gpus_by_pod
    without = [pod for pod in seen.service.pod_names if not known.get(pod)]
    if not without:
        return "the exporter knows watts of pods alone, no cards"
    return f"no GPU exporter and no node agent shows the GPUs of {_pods(without)}"


def _pods(names: list[str]) -> str:
    if not names:
        return "no pod"
    shown = ", ".join(names[:_NAMED_PODS])
    more = f" and {len(names) - _NAMED_PODS} more" if len(names) > _NAMED_PODS else ""
    return f"pod{'s' if len(names) > 1 else ''} {shown}{more}"
