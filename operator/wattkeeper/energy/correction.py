"""The learned part of the watts as a table of each profile: ln(learned / physical), and how sure one may be.

A running replica in a steady state prefills batch * prompt / output tokens per step, so that for one profile the
learned watts depend on batch and mean lengths alone. They are asked at half doublings of the three, at full clock and
without a cap, kept, and interpolated between: a pass over a fleet asks trees and process about new loads only. What
clock, cap, KV fill and a step time of their own do to the watts is left to physics.

Outside the range of the training data what was learned fades, factor by factor: trees and process to the fitted prior
where model, load or lengths are unlike any run, the whole to the catalogue's physics where the card is.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from wattkeeper.domain.errors import UnknownAcceleratorError, UnknownModelError
from wattkeeper.domain.workload import FloatArray
from wattkeeper.energy import factors, learned, points
from wattkeeper.energy.data import backbone
from wattkeeper.energy.learned import Learned, Predicted
from wattkeeper.physics import catalogue, kv, profiles
from wattkeeper.physics.profile import ServingProfile

PHYSICS_HALF_WIDTH_LOG = 0.6
"""Half-width of the physical estimate on cards that no training row is like: within a factor of 1.8."""
KNOTS_PER_DOUBLING = 2
_BATCH_KNOTS = 2 * KNOTS_PER_DOUBLING * 6 + 1
"""1 to 4096 sequences."""
_MOST_LENGTH_KNOT = 20 * KNOTS_PER_DOUBLING
_MOST_PROFILES = 4096
"""Beyond this the tables are made anew: profiles of deployments that are gone pile up otherwise."""
_OF_CARD = [index for index, name in enumerate(factors.NAMES) if name in ("gpu_power_limit", "gpu_bandwidth")]
"""Factors of the GPU type, which has scales of its own in the fitted prior."""
_NO_MEMBER = ""
"""A group that no training row belongs to."""

Cell = tuple[int, int, int]
"""Knots of prompt and output length, and 1 where requests carry media."""


def canonical(model: str) -> str:
    """The catalogue's name of a model, else the one given."""
    try:
        return catalogue.model(model).name
    except UnknownModelError:
        return model


def deployment_groups(names: Iterable[str]) -> tuple[str, str, str, str]:
    """Model, backbone, task and GPU, deployment. Raises ValueError: not four."""
    model, base, task, curve = map(str, names)
    return model, base, task, curve


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """One deployment of the training data, so that a live one like it goes by what was learned of it."""

    model: str
    gpu: str
    gpus: int
    data_parallel: int
    log2_prompt: float
    """Mean over its runs."""
    log2_output: float
    multimodal: bool
    groups: tuple[str, str, str, str]
    """As in `learned.Runs`."""
    own: bool = False
    """A user's own, not of a public set."""


@dataclass(frozen=True, kw_only=True)
class Range:
    """What the training rows cover; arrays (len(FACTORS),), in the scale of each factor."""

    low: FloatArray
    high: FloatArray
    residual_low: float
    """Smallest and largest ln(measured / physical estimate): no correction goes beyond."""
    residual_high: float

    def weights(self, table: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Of the fitted prior, and of what is learned on it, (N,) of factors (N, len(FACTORS)).

        1 inside, falling to 0 over each factor's fade; 0 where a factor is missing.
        """
        beyond = np.maximum(np.maximum(self.low - table, table - self.high), 0.0) / factors.FADES
        near = np.nan_to_num(np.clip(1.0 - beyond, 0.0, 1.0), nan=0.0)
        return np.prod(near[:, _OF_CARD], axis=1), np.prod(near, axis=1)


@dataclass(frozen=True, kw_only=True)
class HalfWidths:
    """90 % half-widths in ln: multiples of the model's own spread, and of physics on the trained cards."""

    known_model: float
    known_backbone: float
    """Of another model with the architecture and size of a trained one."""
    new_backbone: float
    physics: float


class Correction:
    """Learned watts over physical ones. What it keeps only saves time: threads may share it."""

    def __init__(
        self, model: Learned, *, trained: Range, half_widths: HalfWidths, deployments: Sequence[Deployment]
    ) -> None:
        self.model, self.trained, self.half_widths = model, trained, half_widths
        self._deployments = tuple(deployments)
        self._models = frozenset(each.model for each in deployments)
        self._backbones = frozenset(each.groups[1] for each in deployments)
        self._gpus = frozenset(each.gpu for each in deployments)
        self._tables: dict[ServingProfile, dict[Cell, FloatArray]] = {}

    def at(self, states: Sequence[points.OperatingPoints]) -> list[FloatArray]:
        """Correction and half-width, both ln, (2, N) for each of the states; the weight is applied."""
        if len(self._tables) > _MOST_PROFILES:
            self._tables = {}
        placed = [_Placed.of(state) for state in states]
        keys = [_without_caution(state.profile) for state in states]
        tables = [self._tables.setdefault(key, {}) for key in keys]
        wanted: dict[ServingProfile, set[Cell]] = {}
        for key, place, table in zip(keys, placed, tables, strict=True):
            missing = {cell for corners in place.corners for cell in corners if cell not in table}
            if missing:
                wanted.setdefault(key, set()).update(missing)
        self._fill({profile: sorted(cells) for profile, cells in wanted.items()})
        return [place.interpolated(table) for place, table in zip(placed, tables, strict=True)]

    def runs(self, states: Sequence[points.OperatingPoints]) -> learned.Runs:
        """What the learned model sees of states, one after the other: at full clock, no cap, in a closed loop.

        Raises UnknownModelError or UnknownAcceleratorError.
        """
        return learned.runs_of(pd.concat([self._rows(state) for state in states], ignore_index=True))

    def _rows(self, state: points.OperatingPoints) -> pd.DataFrame:
        profile = state.profile
        prompt, output = np.maximum(state.prompt_tokens, 1.0), np.maximum(state.output_tokens, 1.0)
        lengths = np.stack([np.log2(prompt), np.log2(output), state.multimodal], axis=1)
        kinds, kind = np.unique(lengths, axis=0, return_inverse=True)
        members = np.array([self._members(profile, *map(float, row)) for row in kinds])[kind.reshape(-1)]
        return pd.DataFrame(
            {
                "model": profile.model,
                "gpu": profile.gpu.name,
                "num_gpus": float(profile.gpus_per_replica),
                "data_parallel": float(profile.data_parallel_size),
                "kv_bytes_ratio": _kv_bytes_ratio(profile),
                "max_num_seqs": np.maximum(state.batch, 1.0),
                "prompt_tokens": prompt,
                "output_tokens": output,
                "multimodal": state.multimodal,
                "gpu_watts": np.nan,
                "joules_per_token": np.nan,
                "group_model": members[:, 0],
                "group_backbone": members[:, 1],
                "task": members[:, 2],
                "group_curve": members[:, 3],
            }
        )

    def _members(
        self, profile: ServingProfile, log2_prompt: float, log2_output: float, multimodal: float
    ) -> tuple[str, str, str, str]:
        """Model, backbone, task and deployment: of the nearest lengths where this deployment was measured.

        A user's own deployments go before public ones: another machine's cards draw other watts.
        """
        model = canonical(profile.model)
        asked = (model, profile.gpu.name, profile.gpus_per_replica, profile.data_parallel_size, multimodal > 0)
        like = [
            each
            for each in self._deployments
            if (each.model, each.gpu, each.gpus, each.data_parallel, each.multimodal) == asked
        ]
        if like:
            nearest = min(
                like,
                key=lambda each: (
                    not each.own,
                    abs(each.log2_prompt - log2_prompt) + abs(each.log2_output - log2_output),
                ),
            )
            group, base, task, curve = nearest.groups
            return group, base, task.partition("|")[0], curve
        named = next((each.groups[0] for each in self._deployments if each.model == model), _NO_MEMBER)
        return named, backbone(profile.model), _NO_MEMBER, _NO_MEMBER

    def _fill(self, wanted: Mapping[ServingProfile, Sequence[Cell]]) -> None:
        """Ask physics, trees and process about cells; one pass through the trees for all profiles together."""
        states = [_state(profile, cells) for profile, cells in wanted.items()]
        learnable = [self._learnable(profile) for profile in wanted]
        found = iter(self.of_runs([state for state, known in zip(states, learnable, strict=True) if known]))
        for state, known, cells in zip(states, learnable, wanted.values(), strict=True):
            values = next(found) if known else self._physical(len(state.batch))
            curves = values.reshape(2, len(cells), _BATCH_KNOTS)
            self._tables.setdefault(state.profile, {}).update(
                {cell: np.ascontiguousarray(curves[:, index]) for index, cell in enumerate(cells)}
            )

    @staticmethod
    def _physical(count: int) -> FloatArray:
        """(2, N): no correction, and the half-width of the physical estimate."""
        return np.stack([np.zeros(count), np.full(count, PHYSICS_HALF_WIDTH_LOG)])

    @staticmethod
    def _learnable(profile: ServingProfile) -> bool:
        try:
            profiles.architecture(profile.model)
            catalogue.gpu(profile.gpu.name)
        except (UnknownModelError, UnknownAcceleratorError):
            return False
        return True

    def of_runs(self, states: Sequence[points.OperatingPoints], runs: learned.Runs | None = None) -> list[FloatArray]:
        """As `at`, without table: asks about each row. `runs` (all rows) where sequences did other than in `states`.

        Raises UnknownModelError or UnknownAcceleratorError.
        """
        estimates = [state.busy_watts for state in states]
        weights = [
            self.trained.weights(factors.matrix(state, watts)) for state, watts in zip(states, estimates, strict=True)
        ]
        within = [np.flatnonzero(card > 0) for card, _ in weights]
        found = [self._physical(len(state.batch)) for state in states]
        asked = [state.take(index) for state, index in zip(states, within, strict=True) if len(index)]
        if not asked:
            return found
        starts = np.cumsum([0, *(len(state.batch) for state in states)])
        rows_asked = np.concatenate([start + index for start, index in zip(starts, within, strict=False)])
        answer = self.model.predict(self.runs(asked) if runs is None else runs[rows_asked])
        start = 0
        for state, watts, (card, all_), index, values in zip(states, estimates, weights, within, found, strict=True):
            rows = slice(start, start + len(index))
            start = rows.stop
            part = Predicted(
                log_value=answer.log_value[rows], sd_log=answer.sd_log[rows], prior_log=answer.prior_log[rows]
            )
            values[:, index] = self._faded(state.profile, np.log(watts[index]), card[index], all_[index], part)
        return found

    def _multiple(self, model: str) -> float:
        if canonical(model) in self._models:
            return self.half_widths.known_model
        known = backbone(model) in self._backbones
        return self.half_widths.known_backbone if known else self.half_widths.new_backbone

    def _faded(
        self, profile: ServingProfile, physical_log: FloatArray, card: FloatArray, near: FloatArray, answer: Predicted
    ) -> FloatArray:
        """(2, N) of an answer: correction and half-width, as far as training reaches."""
        trained, widths = self.trained, self.half_widths
        log_watts = answer.prior_log + near * (answer.log_value - answer.prior_log)
        correction = card * np.clip(log_watts - physical_log, trained.residual_low, trained.residual_high)
        half = near * self._multiple(profile.model) * answer.sd_log + (1.0 - near) * widths.physics
        if profile.gpu.name not in self._gpus:
            half = np.maximum(half, widths.physics)
        half = card * half + (1.0 - card) * PHYSICS_HALF_WIDTH_LOG
        return np.stack([correction, half])


def _kv_bytes_ratio(profile: ServingProfile) -> float:
    """KV bytes of a token over those of the model's default dtype, as of a replica without pipeline stages."""
    ranks = max(1, profile.gpus_per_replica // profile.data_parallel_size)
    default = kv.demand(profiles.architecture(profile.model), tensor_parallel=ranks).bytes_per_token()
    return profile.kv_bytes_per_token / default if default > 0 else 1.0


def _without_caution(profile: ServingProfile) -> ServingProfile:
    """What limits are feared to do moves no closed loop at full power, and need not make new tables."""
    return profile if profile.cap_caution == 1.0 else replace(profile, cap_caution=1.0)


@dataclass(frozen=True, kw_only=True)
class _Placed:
    """Where the rows of a state lie between knots."""

    corners: tuple[tuple[Cell, Cell, Cell, Cell], ...]
    """Of each kind of lengths that occurs: low and high prompt with low output, then with high output."""
    kind: points.IndexArray
    """(N,): which of them a row belongs to."""
    batch: FloatArray
    prompt_share: FloatArray
    """(N,): 0 at the low knot, 1 at the high one."""
    output_share: FloatArray

    @staticmethod
    def of(state: points.OperatingPoints) -> "_Placed":
        prompt, prompt_share = _knot(state.prompt_tokens, _MOST_LENGTH_KNOT)
        output, output_share = _knot(state.output_tokens, _MOST_LENGTH_KNOT)
        media = (state.multimodal > 0).astype(np.intp)
        number = (prompt * (_MOST_LENGTH_KNOT + 1) + output) * 2 + media
        _, first, kind = np.unique(number, return_index=True, return_inverse=True)
        corners = []
        for row in first:
            low, right, kind_of_media = int(prompt[row]), int(output[row]), int(media[row])
            corners.append((
                (low, right, kind_of_media), (low + 1, right, kind_of_media),
                (low, right + 1, kind_of_media), (low + 1, right + 1, kind_of_media),
            ))  # fmt: skip
        batch, share = _knot(state.batch, _BATCH_KNOTS - 1)
        return _Placed(
            corners=tuple(corners), kind=kind.reshape(-1), batch=batch + share, prompt_share=prompt_share,
            output_share=output_share,
        )  # fmt: skip

    def interpolated(self, table: Mapping[Cell, FloatArray]) -> FloatArray:
        """(2, N) between the curves of the corners."""
        found = np.empty((2, len(self.kind)))
        for number, corners in enumerate(self.corners):
            rows = slice(None) if len(self.corners) == 1 else np.flatnonzero(self.kind == number)
            found[:, rows] = self._between([table[cell] for cell in corners], rows)
        return found

    def _between(self, curves: Iterable[FloatArray], rows: points.IndexArray | slice) -> FloatArray:
        batch, right, up = self.batch[rows], self.prompt_share[rows], self.output_share[rows]
        low = np.minimum(batch.astype(np.intp), _BATCH_KNOTS - 2)
        share = batch - low
        shares = ((1.0 - right) * (1.0 - up), right * (1.0 - up), (1.0 - right) * up, right * up)
        total = np.zeros((2, len(batch)))
        for curve, weight in zip(curves, shares, strict=True):
            total += weight * ((1.0 - share) * curve[:, low] + share * curve[:, low + 1])
        return total


def _knot(value: FloatArray, most: int) -> tuple[points.IndexArray, FloatArray]:
    """Knot below each value, so that there is one above it, and how far it is towards that."""
    place = np.clip(KNOTS_PER_DOUBLING * np.log2(np.maximum(value, 1.0)), 0.0, most)
    low = np.minimum(place.astype(np.intp), most - 1)
    return low, place - low


def _state(profile: ServingProfile, cells: Sequence[Cell]) -> points.OperatingPoints:
    """A closed loop at every batch knot of every cell, cell by cell."""
    batch = np.exp2(np.arange(_BATCH_KNOTS) / KNOTS_PER_DOUBLING)
    lengths = np.array(cells, dtype=np.float64)
    prompt, output = (np.exp2(lengths[:, column] / KNOTS_PER_DOUBLING) for column in (0, 1))
    return points.closed_loop(
        profile,
        batch=np.tile(batch, len(cells)),
        prompt_tokens=np.repeat(prompt, _BATCH_KNOTS),
        output_tokens=np.repeat(output, _BATCH_KNOTS),
        multimodal=np.repeat(lengths[:, 2], _BATCH_KNOTS),
    )
