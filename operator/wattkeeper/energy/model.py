"""Watts of a fleet under many candidates: physical estimate times a learned correction, with an interval.

    watts = replicas * GPUs * (busy * clip(estimate * exp(correction), idle, limit) + (1 - busy) * idle)

(times what readings of this deployment taught at that batch, still between idle and limit; see `energy.calibration`).

The correction (`energy.correction`) makes the estimate of a closed loop at that batch and those lengths, at full clock,
the one of the learned model (`energy.learned`). It fades to nothing outside the range of the training data, factor by
factor, so that an unknown GPU falls back to physics, and is not used where the profile's energy was measured: then
there is nothing to correct. The data know no clock lock and no cap: what these do is left to physics.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wattkeeper.domain.errors import LibraryMissingError, ModelFileError
from wattkeeper.domain.workload import FloatArray
from wattkeeper.energy import artefact, estimate, factors, features, learned_file, points, trained_range
from wattkeeper.energy.calibration import CalibrationKernel
from wattkeeper.energy.correction import (
    PHYSICS_HALF_WIDTH_LOG,
    Correction,
    Deployment,
    HalfWidths,
    Range,
    deployment_groups,
)
from wattkeeper.energy.learned import Runs
from wattkeeper.energy.points import EnergyQuery as EnergyQuery
from wattkeeper.energy.trained_range import Untrained
from wattkeeper.physics.profile import Provenance, ServingProfile

MEASURED_HALF_WIDTH_LOG = 0.1
"""Least half-width where the profile's energy was measured: other workloads than the measured one."""
NO_MODEL, NO_LIBRARY = "NoEnergyModel", "NoLightGBM"
"""Reasons of a condition: the model file cannot be used; it cannot be read on this machine."""
_REFERENCE_TOLERANCE = 0.03
"""Relative difference of physical estimates up to which a correction learned to one still fits the other."""
_SIGMAS = 1.645
"""From one sigma to a 90 % interval."""
_PHYSICS_KERNEL = CalibrationKernel(level_sd_log=0.28, shape_sd_log=0.23, length_log2_batch=3.0, noise_sd_log=0.04)
"""How the error of the physical estimate alone is taken to vary where no model file tells a measured one: together as
wide as `PHYSICS_HALF_WIDTH_LOG`, 40 % of the variance turning over three doublings of the batch."""


@dataclass(frozen=True, kw_only=True)
class WattsPrediction:
    """Watts of all GPUs of all replicas, (N,), and the ends of their 90 % interval."""

    watts: FloatArray
    low_watts: FloatArray
    high_watts: FloatArray


class EnergyModel:
    """Predicts watts. Immutable; safe to share between threads."""

    def __init__(
        self, correction: Correction | None, *, version: str = "physics", card: dict[str, Any] | None = None,
        reason: str = NO_MODEL, problem: str = "",
    ) -> None:  # fmt: skip
        self.correction = correction
        """What was learned; None: physics alone."""
        self.trusted = correction is not None
        """False where no trained correction is in use."""
        self.version = version
        self.reason = "" if self.trusted else reason
        """Why no trained correction is in use, in one CamelCase word for a condition; empty with one."""
        self.problem = problem
        """The same for people; empty where nothing is wrong."""
        self.card: dict[str, Any] = card or {}
        """Data, split, errors and licences of the trained file; empty without one."""

    @staticmethod
    def load(path: Path | None = None) -> "EnergyModel":
        """The model of a file that `wattkeeper train` wrote; None: the one that ships with the package.

        Raises ModelFileError: missing, corrupt, altered, or for other factors than this program's. Its subclass
        LibraryMissingError: the file may be right, but LightGBM cannot be loaded.
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
            correction = correction_of(payload)
        except LibraryMissingError as error:
            raise LibraryMissingError(f"energy model {file.name} is not used: {error}") from error
        except (ModelFileError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise ModelFileError(
                f"energy model {file} cannot be used ({error}): train it again with `wattkeeper train`, or use the "
                "file that ships with the package"
            ) from error
        return EnergyModel(correction, version=f"energy-v2-{sha256[:8]}", card=dict(payload.card))

    @staticmethod
    def physics_only(problem: str = "", *, reason: str = NO_MODEL) -> "EnergyModel":
        """The physical estimate alone, with a wide interval; `trusted` is False. `problem`: why, for people."""
        return EnergyModel(None, reason=reason, problem=problem)

    @staticmethod
    def load_or_physics(path: Path | None = None) -> "EnergyModel":
        """As `load`; where the file cannot be used, physics alone, which says why in `reason` and `problem`.

        Raises ModelFileError: a file was named and is not there, which is a mistake in the command.
        """
        try:
            return EnergyModel.load(path)
        except LibraryMissingError as error:
            return EnergyModel.physics_only(str(error), reason=NO_LIBRARY)
        except ModelFileError as error:
            if path is not None and not path.exists():
                raise
            return EnergyModel.physics_only(str(error))

    def watts(self, queries: Sequence[EnergyQuery]) -> list[WattsPrediction]:
        """Predictions for all queries, in their order; what is not yet known of the correction is asked at once."""
        if not queries:
            return []
        groups: dict[ServingProfile, list[int]] = defaultdict(list)
        for index, query in enumerate(queries):
            groups[query.profile].append(index)
        states = [points.of_queries([queries[index] for index in members]) for members in groups.values()]
        corrections = self._corrections([state for state, _ in states])
        predictions: dict[int, WattsPrediction] = {}
        for members, (state, busy), (correction, half) in zip(groups.values(), states, corrections, strict=True):
            asked = [queries[index] for index in members]
            found = self._watts(asked, state, busy, correction, half)
            predictions |= zip(members, _parts(found, asked), strict=True)
        return [predictions[index] for index in range(len(queries))]

    def busy_watts(self, states: Sequence[points.OperatingPoints]) -> list[FloatArray]:
        """Watts per GPU while iterating, (N,) for each of the states, before what live readings taught."""
        return [
            _bounded(state, correction)
            for state, (correction, _) in zip(states, self._corrections(states), strict=True)
        ]

    def kernel_of(self, profile: ServingProfile | None) -> CalibrationKernel:
        """How the error of a deployment that was never measured varies: what readings of it are conditioned on.

        Wider on a card that no training run had (None: not known which).
        """
        if self.correction is None or profile is None:
            return _PHYSICS_KERNEL
        return self.correction.model.kernel_on(profile.gpu.name)

    def of_runs(self, state: points.OperatingPoints, runs: Runs) -> tuple[FloatArray, FloatArray]:
        """Watts per GPU while iterating and half-width (ln) of their 90 % interval, (N,), of measured runs.

        `runs` tells what their sequences did: a finite run need not be in a steady state. Raises ValueError without a
        trained correction.
        """
        if self.correction is None:
            raise ValueError("physics alone knows nothing of runs")
        (found,) = self.correction.of_runs([state], runs)
        return _bounded(state, found[0]), np.asarray(found[1])

    def learned_by_column(self, state: points.OperatingPoints) -> FloatArray:
        """Contributions (N, len(features.COLUMNS)) to ln(watts) through the trees, over their mean answer.

        TreeSHAP as LightGBM gives it (Lundberg et al. 2020), averaged over the boosters, times the share that trees
        have in the model; before the correction fades. Zeros without a model file, and where energy was measured.
        """
        if self.correction is None or state.profile.energy_provenance is not Provenance.ESTIMATED:
            return np.zeros((len(state.batch), len(features.COLUMNS)))
        return self.correction.model.tree_shares(self.correction.runs([state]))

    def _corrections(self, states: Sequence[points.OperatingPoints]) -> list[FloatArray]:
        """ln(corrected / estimated) and the 90 % half-width in ln, (2, N) for each of the states."""
        learned = [
            index
            for index, state in enumerate(states)
            if self.correction is not None and state.profile.energy_provenance is Provenance.ESTIMATED
        ]
        found = [np.stack([np.zeros(len(state.batch)), _own_half_width(state)]) for state in states]
        if self.correction is not None and learned:
            answers = self.correction.at([states[index] for index in learned])
            for index, answer in zip(learned, answers, strict=True):
                found[index] = answer
        return found

    def trained_ranges(self) -> dict[str, tuple[float, float]]:
        """Smallest and largest value of each factor in training, in its unit; empty without a model file."""
        if self.correction is None:
            return {}
        return trained_range.in_units(self.correction.trained.low, self.correction.trained.high)

    def outside(self, state: points.OperatingPoints) -> list[tuple[Untrained, ...]]:
        """Factors of each of N states that are outside the trained range or not known, and widen its interval.

        Judged as the correction is: in a closed loop of the same batch and lengths. Empty tuples without a model file,
        and where the profile's energy was measured: ranges say nothing then.
        """
        if self.correction is None or state.profile.energy_provenance is not Provenance.ESTIMATED:
            return [()] * len(state.batch)
        steady = points.closed_loop(
            state.profile,
            batch=np.maximum(state.batch, 1.0),
            prompt_tokens=np.maximum(state.prompt_tokens, 1.0),
            output_tokens=np.maximum(state.output_tokens, 1.0),
            multimodal=state.multimodal,
        )
        return trained_range.outside(steady, self.correction.trained.low, self.correction.trained.high)

    @staticmethod
    def _watts(
        queries: Sequence[EnergyQuery], state: points.OperatingPoints, busy: FloatArray, correction: FloatArray,
        half_width: FloatArray,
    ) -> WattsPrediction:  # fmt: skip
        replicas = [np.asarray(query.candidates.replicas, dtype=np.float64) for query in queries]
        gpus = np.concatenate(replicas) * state.profile.gpus_per_replica
        idle = np.minimum(state.profile.energy.idle_watts, state.limit_watts)
        busy_watts = _bounded(state, correction)
        factor, width = _calibrated(queries, state.batch, half_width)
        spread = np.exp(width)
        each = np.clip(factor * (busy * busy_watts + (1.0 - busy) * idle), idle, state.limit_watts)
        return WattsPrediction(
            watts=gpus * each,
            low_watts=gpus * np.clip(each / spread, idle, each),
            high_watts=gpus * np.clip(each * spread, each, state.limit_watts),
        )


def correction_of(payload: artefact.Payload) -> Correction:
    """What a model file learned.

    Raises ValueError, KeyError or TypeError: parts are missing or foreign. ModelFileError: a booster cannot be read.
    """
    return Correction(
        learned_file.restored(payload.learned),
        trained=Range(
            low=np.array(payload.factor_low),
            high=np.array(payload.factor_high),
            residual_low=payload.residual_low,
            residual_high=payload.residual_high,
        ),
        half_widths=HalfWidths(**payload.half_width),
        deployments=[
            Deployment(**each | {"groups": deployment_groups(each["groups"])}) for each in payload.deployments
        ],
    )


def _own_half_width(state: points.OperatingPoints) -> FloatArray:
    """Half-width (ln) where no correction is used."""
    profile = state.profile
    if profile.energy_provenance is Provenance.ESTIMATED:
        return np.full(len(state.batch), PHYSICS_HALF_WIDTH_LOG)
    return np.full(len(state.batch), max(_SIGMAS * profile.relative_error, MEASURED_HALF_WIDTH_LOG))


def _bounded(state: points.OperatingPoints, correction_log: FloatArray) -> FloatArray:
    """Corrected watts per GPU while iterating, between idle and limit."""
    idle = np.minimum(state.profile.energy.idle_watts, state.limit_watts)
    return np.clip(state.busy_watts * np.exp(correction_log), idle, state.limit_watts)


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
