"""Watts of a fleet under many candidates: physical estimate times a learned correction, with an interval.

    watts = replicas * GPUs * (busy * clip(estimate * exp(weight * residual), idle, limit) + (1 - busy) * idle)

(times what readings of this deployment taught at that batch, still between idle and limit; see `energy.calibration`).

`residual` is LightGBM's, kept within what training saw. `weight` is 1 inside the range of the training data, fades to 0
outside it factor by factor, and is 0 where the profile's energy was measured: then there is nothing to correct. So an
unknown GPU falls back to physics, and nothing extrapolates. The data know no clock lock and no cap, so the residual is
taken at full clock for the same work, and what the clock and the cap do is left to physics.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightgbm as lgb
import numpy as np

from wattkeeper.domain.errors import ModelFileError
from wattkeeper.domain.workload import FloatArray
from wattkeeper.energy import artefact, baselines, estimate, factors, points, trained_range
from wattkeeper.energy.calibration import CalibrationKernel
from wattkeeper.energy.points import EnergyQuery as EnergyQuery
from wattkeeper.energy.trained_range import Untrained
from wattkeeper.physics.profile import Provenance, ServingProfile

PHYSICS_HALF_WIDTH_LOG = 0.6
"""Half-width of the physical estimate where no model file tells a measured one: within a factor of 1.8."""
MEASURED_HALF_WIDTH_LOG = 0.1
"""Least half-width where the profile's energy was measured: other workloads than the measured one."""
_REFERENCE_TOLERANCE = 0.03
"""Relative difference of physical estimates up to which a correction learned to one still fits the other."""
_SIGMAS = 1.645
"""From one sigma to a 90 % interval."""
_SHAPE_SHARE, _LENGTH_LOG2_BATCH, _NOISE_SD_LOG = 0.4, 3.0, 0.04
"""Of a deployment's error, while no model file tells them: the share that turns with the batch, over how many
doublings, and what is left around a smooth curve (sibling checkpoints differ by 2 to 9 %)."""


@dataclass(frozen=True, kw_only=True)
class WattsPrediction:
    """Watts of all GPUs of all replicas, (N,), and the ends of their 90 % interval."""

    watts: FloatArray
    low_watts: FloatArray
    high_watts: FloatArray


class EnergyModel:
    """Predicts watts. Immutable; safe to share between threads."""

    def __init__(self, payload: artefact.Payload | None, *, sha256: str = "") -> None:
        self._payload = payload
        self._boosters: tuple[lgb.Booster, ...] = ()
        if payload is not None:
            self._boosters = tuple(lgb.Booster(model_str=text) for text in payload.boosters)
            self._low, self._high = np.array(payload.factor_low), np.array(payload.factor_high)
            self._models = frozenset(payload.models)
        self.trusted = payload is not None
        """False where no trained correction is in use."""
        self.version = f"energy-v1-{sha256[:8]}" if payload is not None else "physics"
        self.card: dict[str, Any] = dict(payload.card) if payload is not None else {}
        """Data, split, errors and licences of the trained file; empty without one."""
        half_width = PHYSICS_HALF_WIDTH_LOG if payload is None else payload.half_width_log["new_model"]
        self.kernel = CalibrationKernel(
            level_sd_log=half_width / _SIGMAS * math.sqrt(1.0 - _SHAPE_SHARE),
            shape_sd_log=half_width / _SIGMAS * math.sqrt(_SHAPE_SHARE),
            length_log2_batch=_LENGTH_LOG2_BATCH,
            noise_sd_log=_NOISE_SD_LOG,
        )
        """How the error of an unmeasured deployment varies: what readings of it are conditioned on."""

    @staticmethod
    def load(path: Path | None = None) -> "EnergyModel":
        """The model of a file that `wattkeeper train` wrote; None: the one that ships with the package.

        Raises ModelFileError: missing, corrupt, altered, or for other factors than this program's.
        """
        file = path or artefact.shipped_path()
        payload, sha256 = artefact.load(file)
        if payload.factors != factors.NAMES:
            raise ModelFileError(
                f"energy model {file} was trained on other factors than this program has: train it again with "
                "`wattkeeper train`, or use the file that ships with the package"
            )
        now = estimate.reference_watts()
        if len(now) != len(payload.reference_watts) or not np.allclose(
            payload.reference_watts, now, rtol=_REFERENCE_TOLERANCE
        ):
            raise ModelFileError(
                f"energy model {file} corrects another physical estimate than this program's: train it again with "
                "`wattkeeper train`, or use the file that ships with the package"
            )
        try:
            model = EnergyModel(payload, sha256=sha256)
        except lgb.basic.LightGBMError as error:
            raise ModelFileError(
                f"energy model {file} holds a booster that this LightGBM cannot read ({error}): train it again"
            ) from error
        return model

    @staticmethod
    def physics_only() -> "EnergyModel":
        """The physical estimate alone, with a wide interval; `trusted` is False."""
        return EnergyModel(None)

    def watts(self, queries: Sequence[EnergyQuery]) -> list[WattsPrediction]:
        """Predictions for all queries, in their order; one pass through the trees for all of them together."""
        if not queries:
            return []
        groups: dict[ServingProfile, list[int]] = defaultdict(list)
        for index, query in enumerate(queries):
            groups[query.profile].append(index)
        states = [points.of_queries([queries[index] for index in members]) for members in groups.values()]
        watts = [state.busy_watts for state, _ in states]
        ends = np.cumsum([len(each) for each in watts])
        residual, weight = self._corrections([state for state, _ in states], watts)
        predictions: dict[int, WattsPrediction] = {}
        for members, (state, busy), busy_watts, end in zip(groups.values(), states, watts, ends, strict=True):
            rows = slice(int(end) - len(busy_watts), int(end))
            asked = [queries[index] for index in members]
            found = self._watts(asked, state, busy, busy_watts, residual[rows], weight[rows])
            predictions |= zip(members, _parts(found, asked), strict=True)
        return [predictions[index] for index in range(len(queries))]

    def busy_watts(self, states: Sequence[points.OperatingPoints]) -> list[FloatArray]:
        """Watts per GPU while iterating, (N,) for each of the states, before what live readings taught."""
        if not states:
            return []
        watts = [state.busy_watts for state in states]
        residual, weight = self._corrections(states, watts)
        corrections = np.split(weight * residual, np.cumsum([len(each) for each in watts])[:-1])
        return [
            _bounded(state, each, correction)
            for state, each, correction in zip(states, watts, corrections, strict=True)
        ]

    def learned_by_factor(self, state: points.OperatingPoints) -> FloatArray:
        """Contributions (N, len(FACTORS)) of each factor to ln(watts) through the trees, over their mean answer.

        TreeSHAP as LightGBM gives it (Lundberg et al. 2020), averaged over the boosters, times the weight that the
        trees have there; before their answer is bounded. Zeros without a model file.
        """
        if self._payload is None:
            return np.zeros((len(state.batch), len(factors.FACTORS)))
        table, weight = self._factor_table([state], [state.busy_watts])
        shares = [np.asarray(booster.predict(table, pred_contrib=True, num_threads=1)) for booster in self._boosters]
        found: FloatArray = weight[:, None] * np.mean(shares, axis=0)[:, :-1]
        return found

    def trained_ranges(self) -> dict[str, tuple[float, float]]:
        """Smallest and largest value of each factor in training, in its unit; empty without a model file."""
        return {} if self._payload is None else trained_range.in_units(self._low, self._high)

    def outside(self, state: points.OperatingPoints) -> list[tuple[Untrained, ...]]:
        """Factors of each of N states that are outside the trained range or not known, and widen its interval.

        Empty tuples without a model file, and where the profile's energy was measured: ranges say nothing then.
        """
        if self._payload is None or state.profile.energy_provenance is not Provenance.ESTIMATED:
            return [()] * len(state.batch)
        return trained_range.outside(state.at_full_clock(), self._low, self._high)

    def _corrections(
        self, states: Sequence[points.OperatingPoints], watts: Sequence[FloatArray]
    ) -> tuple[FloatArray, FloatArray]:
        """Bounded residual and its weight for all rows of all states."""
        if self._payload is None:
            rows = sum(len(each) for each in watts)
            return np.zeros(rows), np.zeros(rows)
        table, weight = self._factor_table(states, watts)
        residual = np.zeros(len(table))
        used = np.flatnonzero(weight > 0)
        if len(used):
            rows_used = table[used]
            raw = np.mean([baselines.predict_trees(booster, rows_used) for booster in self._boosters], axis=0)
            residual[used] = np.clip(raw, self._payload.residual_low, self._payload.residual_high)
        return residual, weight

    def _factor_table(
        self, states: Sequence[points.OperatingPoints], watts: Sequence[FloatArray]
    ) -> tuple[FloatArray, FloatArray]:
        """Factors at full clock (rows, len(FACTORS)) and the weight of a correction there (rows,)."""
        rows = sum(len(each) for each in watts)
        table, weight, start = np.empty((rows, len(factors.FACTORS))), np.zeros(rows), 0
        for state, busy_watts in zip(states, watts, strict=True):
            end = start + len(busy_watts)
            full = state.at_full_clock()
            factors.matrix(full, busy_watts if full is state else full.busy_watts, out=table[start:end])
            if state.profile.energy_provenance is Provenance.ESTIMATED:
                weight[start:end] = self._domain_weight(table[start:end])
            start = end
        return table, weight

    def _domain_weight(self, table: FloatArray) -> FloatArray:
        """1 inside the trained range of every factor, falling to 0 over each factor's fade; 0 where one is missing."""
        beyond = np.maximum(np.maximum(self._low - table, table - self._high), 0.0) / factors.FADES
        weight: FloatArray = np.prod(np.clip(1.0 - beyond, 0.0, 1.0), axis=1)
        return np.nan_to_num(weight, nan=0.0)

    def _watts(
        self, queries: Sequence[EnergyQuery], state: points.OperatingPoints, busy: FloatArray, estimated: FloatArray,
        residual: FloatArray, weight: FloatArray,
    ) -> WattsPrediction:  # fmt: skip
        replicas = [np.asarray(query.candidates.replicas, dtype=np.float64) for query in queries]
        gpus = np.concatenate(replicas) * state.profile.gpus_per_replica
        idle = np.minimum(state.profile.energy.idle_watts, state.limit_watts)
        busy_watts = _bounded(state, estimated, weight * residual)
        factor, width = _calibrated(queries, state.batch, self._half_width(state, weight))
        spread = np.exp(width)
        each = np.clip(factor * (busy * busy_watts + (1.0 - busy) * idle), idle, state.limit_watts)
        return WattsPrediction(
            watts=gpus * each,
            low_watts=gpus * np.clip(each / spread, idle, each),
            high_watts=gpus * np.clip(each * spread, each, state.limit_watts),
        )

    def _half_width(self, state: points.OperatingPoints, weight: FloatArray) -> FloatArray:
        profile = state.profile
        if profile.energy_provenance is not Provenance.ESTIMATED:
            return np.full(len(weight), max(_SIGMAS * profile.relative_error, MEASURED_HALF_WIDTH_LOG))
        if self._payload is None:
            return np.full(len(weight), PHYSICS_HALF_WIDTH_LOG)
        widths = self._payload.half_width_log
        learned = widths["known_model" if profile.model in self._models else "new_model"]
        return weight * learned + (1.0 - weight) * widths["physics"]


def _bounded(state: points.OperatingPoints, estimated: FloatArray, correction_log: FloatArray) -> FloatArray:
    """Corrected watts per GPU while iterating, between idle and limit."""
    idle = np.minimum(state.profile.energy.idle_watts, state.limit_watts)
    return np.clip(estimated * np.exp(correction_log), idle, state.limit_watts)


def _calibrated(
    queries: Sequence[EnergyQuery], batch: FloatArray, half_width: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Factor on the watts and half-width (log) of each row: narrower where readings of the deployment say so."""
    factor, width, end = np.ones(len(batch)), half_width.copy(), 0
    for query in queries:
        begin, end = end, end + len(query.candidates.replicas)
        if query.calibration is not None:
            rows = slice(begin, end)
            factor[rows], spread = query.calibration.factor_and_spread(np.maximum(batch[rows], 1.0))
            left = _SIGMAS * np.hypot(spread, query.calibration.kernel.noise_sd_log)
            width[rows] = np.minimum(width[rows], left)
    return factor, width


def _parts(whole: WattsPrediction, queries: Sequence[EnergyQuery]) -> Iterator[WattsPrediction]:
    """The rows of each query, as views."""
    end = 0
    for query in queries:
        begin, end = end, end + len(query.candidates.replicas)
        yield WattsPrediction(
            watts=whole.watts[begin:end], low_watts=whole.low_watts[begin:end], high_watts=whole.high_watts[begin:end]
        )
