"""Operating points that a service can be brought to: other replica counts now, other rates as traffic moves. Pure."""

from dataclasses import dataclass, replace

import numpy as np

from wattkeeper.api import convert, service_status
from wattkeeper.api import inference_service as api
from wattkeeper.api.model_profile import ModelProfileSpec
from wattkeeper.controller import overrides
from wattkeeper.domain.engine import EngineSettings
from wattkeeper.domain.errors import WattkeeperError
from wattkeeper.domain.workload import LengthDistribution, Workload
from wattkeeper.physics import kv, limits, profiles
from wattkeeper.physics.profile import ServingProfile
from wattkeeper.queueing import sla
from wattkeeper.queueing.types import Candidates, SlaQuery

RATE_SHARES = (0.25, 0.5, 1.0, 1.5, 2.0)
"""Of the measured rate: what a day usually brings."""
LEAST_BUSY = 0.25
"""Replicas that idle more than this leaves draw idle power, whatever their batch: nothing is learnt there."""
_LENGTH_VARIATION = 1.0
"""Of prompt and answer lengths, of which status has the means alone."""


@dataclass(frozen=True, kw_only=True)
class ReachablePoint:
    """One operating point that meets the SLO."""

    replicas: int
    requests_per_second: float
    batch: float
    """Decoding sequences of a replica while it is busy."""
    now: bool
    """True where the measured rate is kept: the replica count alone brings the service there."""


def profile_of(
    spec: api.InferenceServiceSpec,
    status: service_status.InferenceServiceStatus,
    measured: tuple[str, ModelProfileSpec] | None,
) -> ServingProfile:
    """The profile that the operator plans this service with, but for what it refitted.

    `measured` is name and spec of the ModelProfile. Raises WattkeeperError: accelerator or model are not known.
    """
    accelerator = status.profile.accelerator or (spec.accelerator.type if spec.accelerator is not None else None)
    if not accelerator:
        raise WattkeeperError(
            "the status names no accelerator yet: wait until the operator (of this version) has looked at the service"
        )
    return profiles.serving_profile(
        model=spec.model,
        accelerator=accelerator,
        gpus_per_replica=status.profile.gpus_per_replica or 1,
        engine=engine_of(status),
        overrides=None if measured is None else overrides.of_profile(*measured),
    )


def points(
    spec: api.InferenceServiceSpec, status: service_status.InferenceServiceStatus, profile: ServingProfile
) -> list[ReachablePoint]:
    """All stable points within the SLO at which replicas have something to do.

    That is every replica count allowed, at shares of the measured rate. Raises WattkeeperError: nothing was measured
    yet, or the service is idle.
    """
    workload = workload_of(status)
    lever = convert.levers(spec).replicas
    have = status.applied.ready_replicas or status.applied.replicas or 1
    low, high = (have, have) if lever is None else (max(lever.minimum, 1), lever.maximum)
    counts = sorted({*range(low, high + 1), have})
    slo, engine = convert.slo(spec.slo), engine_of(status)
    width = np.ones(len(counts))
    candidates = Candidates(
        replicas=np.array(counts, dtype=np.float64),
        power_cap_watts=np.full(len(counts), status.applied.power_cap_watts.requested or np.nan),
        clock_ratio=width,
        max_num_seqs=width * limits.max_num_seqs(engine, profile.gpu),
        max_num_batched_tokens=width * limits.max_num_batched_tokens(engine, profile.gpu),
        kv_capacity_tokens=width * kv.capacity_tokens(profile, engine, None),
    )
    queries = [
        SlaQuery(
            profile=profile,
            workload=workload.at_rate(share * workload.requests_per_second),
            candidates=candidates,
            ttft_percentile=slo.ttft.percentile if slo.ttft else 95.0,
            tpot_percentile=slo.tpot.percentile if slo.tpot else 95.0,
        )
        for share in RATE_SHARES
    ]
    found = []
    for share, prediction in zip(RATE_SHARES, sla.predict_fleet(queries), strict=True):
        within = prediction.stable & np.isfinite(prediction.batch) & (prediction.busy >= LEAST_BUSY)
        for goal, upper in ((slo.ttft, prediction.ttft_upper_seconds), (slo.tpot, prediction.tpot_upper_seconds)):
            within &= upper <= (np.inf if goal is None else goal.seconds)
        found += [
            ReachablePoint(
                replicas=counts[row],
                requests_per_second=share * workload.requests_per_second,
                batch=max(float(prediction.batch[row]), 1.0),
                now=share == 1.0,
            )
            for row in np.flatnonzero(within)
        ]
    return found


def workload_of(status: service_status.InferenceServiceStatus) -> Workload:
    """The traffic measured last; of lengths, status has the means alone.

    Raises WattkeeperError: nothing was measured yet, or the service is idle.
    """
    observed = status.observed
    if not (observed.qps and observed.prompt_tokens and observed.output_tokens):
        raise WattkeeperError(
            "no traffic was measured yet (status.observed has no rate or lengths): send requests and ask again"
        )
    return Workload(
        requests_per_second=observed.qps,
        prompt=_lengths(observed.prompt_tokens),
        output=_lengths(observed.output_tokens),
        prefix_hit_ratio=min(observed.prefix_hit_ratio or 0.0, 0.99),
    )


def engine_of(status: service_status.InferenceServiceStatus) -> EngineSettings:
    """Engine arguments in place."""
    return replace(
        EngineSettings(tensor_parallel_size=status.profile.gpus_per_replica or 1),
        **status.applied.engine.model_dump(exclude_none=True),
    )


def _lengths(mean_tokens: float) -> LengthDistribution:
    return LengthDistribution.lognormal(mean=mean_tokens, coefficient_of_variation=_LENGTH_VARIATION)
