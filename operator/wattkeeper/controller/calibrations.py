"""What measured watts taught, by deployment: kept in the ModelProfile of the pair, else in the service's status.

Services of one namespace that run the same model on the same accelerator, with as many GPUs per replica and the same
type of KV cache, share what they learn where a ModelProfile of the pair exists: it outlives them and serves the next
one. With the readings goes what was read at full power (`controller.full_power`). This is the only writer of
`ModelProfile.status`; it writes at most once a minute and object, only what changed, and only on the version that it
knows. What somebody else writes or deletes there wins and is read again.
"""

import itertools
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import pydantic

from wattkeeper.api.base import GROUP, VERSION
from wattkeeper.api.calibration import CalibrationStatus, LearntReading
from wattkeeper.api.model_profile import ModelProfileStatus
from wattkeeper.controller import cache as cluster
from wattkeeper.controller import full_power
from wattkeeper.controller.clock import from_rfc3339, to_rfc3339
from wattkeeper.controller.full_power import FullPowerReadings
from wattkeeper.controller.kube import (
    Kube,
    KubeConflictError,
    KubeError,
    KubeForbiddenError,
    KubeNotFoundError,
    Object,
    path_of,
)
from wattkeeper.controller.service import Service, ServiceKey
from wattkeeper.domain.engine import EngineSettings
from wattkeeper.energy.calibration import Calibration, CalibrationKernel, Reading
from wattkeeper.energy.learnt import LearntBin, LearntReadings
from wattkeeper.physics.profile import ServingProfile

_log = logging.getLogger(__name__)
MOST_CALIBRATIONS = 8
"""Kept in one ModelProfile: one per type of KV cache."""
MOST_WRITES = 20
"""In one pass; the others come in the next."""
_ERROR_STEP, _WEIGHT_STEP = 0.01, 0.25
"""A smaller change of a reading, or of its weight as a share, is not worth a write."""

ProfileKey = tuple[str, str]
"""(namespace, name) of a ModelProfile."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """What readings belong to: on other hardware they say nothing."""

    model: str
    accelerator: str
    gpus_per_replica: int
    kv_cache_dtype: str

    @staticmethod
    def of(profile: ServingProfile, engine: EngineSettings) -> "Pair":
        """Of a deployment."""
        return Pair(
            model=profile.model,
            accelerator=profile.gpu.name,
            gpus_per_replica=profile.gpus_per_replica,
            kv_cache_dtype=engine.kv_cache_dtype or "auto",
        )

    def is_of(self, status: CalibrationStatus) -> bool:
        """True where `status` is of this pair, or does not tell whose it is."""
        return (
            status.kv_cache_dtype == self.kv_cache_dtype
            and status.model in ("", self.model)
            and status.accelerator in ("", self.accelerator)
            and status.gpus_per_replica in (None, self.gpus_per_replica)
        )


@dataclass(kw_only=True)
class Book:
    """What one deployment, or all of one pair, taught."""

    pair: Pair
    readings: LearntReadings = field(default_factory=LearntReadings)
    full_power: FullPowerReadings = field(default_factory=FullPowerReadings)
    profile: str | None = None
    """Name of the ModelProfile that keeps it; None: the service's status does."""
    ignored: str = ""
    """Why something that was kept is not used."""


@dataclass(kw_only=True)
class _Shared:
    """The books of one ModelProfile, and what is known of the object."""

    books: dict[Pair, Book] = field(default_factory=dict)
    read: list[CalibrationStatus] = field(default_factory=list)
    """What the object holds, as far as is known."""
    versions: set[str] = field(default_factory=set)
    """Versions of the object that are accounted for."""
    latest: str = ""
    due: float = 0.0
    refused: bool = False
    """True where its status cannot be written: the services' statuses keep the readings."""


@dataclass(kw_only=True)
class Calibrations:
    """All books of the operator. For the loop's thread alone."""

    kube: Kube
    cache: cluster.ClusterCache
    kernel_of: Callable[[ServingProfile | None], CalibrationKernel]
    """How the error of a deployment varies: `EnergyModel.kernel_of`."""
    energy_model: str
    """Version of the energy model in use; what another one taught is not used."""
    wall: Callable[[], float] = time.time
    """Unix seconds."""
    every_seconds: float = 60.0
    """Between two writes of one object (wall time)."""
    _shared: dict[ProfileKey, _Shared] = field(default_factory=dict)
    _own: dict[ServiceKey, Book] = field(default_factory=dict)

    def of(self, service: Service) -> Book:
        """The book of a service; read from the cluster where it is not known yet.

        Raises ValueError where the service has no profile: then nobody knows what readings would belong to.
        """
        if service.profile is None:
            raise ValueError(f"{service.owner} has no profile")
        pair, remembered = Pair.of(service.profile, service.engine), service.status.memory.calibration
        shared = self._shared_of(service)
        if shared is None:
            own = self._own.get(service.key)
            if own is None or own.pair != pair:
                own = self._own[service.key] = self._book(service, pair, [remembered])
            return own
        book = shared.books.get(pair)
        if book is None:
            # A profile that is new or knows nothing of this pair begins with what the service itself remembers.
            book = shared.books[pair] = self._book(service, pair, [*shared.read, remembered])
        book.profile = None if shared.refused else service.profile_name
        return book

    def learn(self, service: Service, readings: Iterable[Reading], *, wall: float) -> None:
        """Take readings of a service in."""
        book, kernel = self.of(service), self.kernel_of(service.profile)
        for reading in readings:
            book.readings = book.readings.take(reading, kernel, now_seconds=wall)

    def calibration(self, service: Service, *, wall: float) -> Calibration | None:
        """What the energy model conditions on for this service; None where nothing was measured."""
        return self.of(service).readings.calibration(self.kernel_of(service.profile), now_seconds=wall)

    def kept_in_service(self, service: Service) -> CalibrationStatus | None:
        """What the service's own status has to keep; None where a ModelProfile does, or nothing was learnt."""
        if service.profile is None:
            return service.status.memory.calibration
        book = self.of(service)
        return self._status(book) if book.profile is None and book.readings.bins else None

    def describe(self, service: Service) -> str:
        """What was learnt, or why what was kept is not used, in words; empty where there is nothing to say."""
        if service.profile is None:
            return ""
        book = self.of(service)
        if not book.readings.bins:
            return book.ignored
        batches = [each.batch for each in book.readings.bins]
        where = f"batch {batches[0]:.0f}" if len(batches) == 1 else f"batches {batches[0]:.0f} to {batches[-1]:.0f}"
        return f"power calibrated at {where}" + ("" if book.profile is None else f" (ModelProfile {book.profile})")

    def keep_only(self, alive: set[ServiceKey]) -> None:
        """Forget services that are gone, and profiles."""
        for key in set(self._own) - alive:
            del self._own[key]
        for profile in [key for key in self._shared if self.cache.get(cluster.PROFILES, *key) is None]:
            del self._shared[profile]
        for book in itertools.chain(self._own.values(), *(each.books.values() for each in self._shared.values())):
            book.full_power.keep_only(alive)

    def write(self, wall: float) -> None:
        """Write what changed into the ModelProfiles."""
        written = 0
        for key, shared in sorted(self._shared.items(), key=lambda item: item[1].due):
            wanted = self._wanted(shared)
            if not wanted or shared.refused or wall < shared.due or not _changed(shared.read, wanted):
                continue
            shared.due = wall + self.every_seconds
            self._put(key, shared, wanted)
            written += 1
            if written == MOST_WRITES:
                return

    def _wanted(self, shared: _Shared) -> list[CalibrationStatus]:
        """What a ModelProfile should hold: the books, and what it keeps of pairs that no service runs now."""
        books = [book for book in shared.books.values() if book.readings.bins]
        if not books:
            return []
        idle = [
            each
            for each in shared.read
            if each.energy_model == self.energy_model and not any(book.pair.is_of(each) for book in books)
        ]
        return sorted([*map(self._status, books), *idle][:MOST_CALIBRATIONS], key=_identity)

    def _put(self, key: ProfileKey, shared: _Shared, wanted: list[CalibrationStatus]) -> None:
        namespace, name = key
        path = path_of("modelprofiles", group=GROUP, version=VERSION, namespace=namespace, name=name, sub="status")
        status = ModelProfileStatus(calibrations=wanted).model_dump(by_alias=True, mode="json", exclude_none=True)
        try:
            answer = self.kube.patch(path, {"status": status}, resource_version=shared.latest)
        except KubeConflictError:
            return  # somebody changed the object: once the watch shows it, it is looked at again
        except (KubeForbiddenError, KubeNotFoundError) as error:
            if self.cache.get(cluster.PROFILES, namespace, name) is None:
                return
            shared.refused = True
            _log.warning(
                "what was learnt is kept in the services' statuses, for that of ModelProfile %s/%s cannot be written: "
                "%s. Apply manifests/base/rbac.yaml and crds/",
                namespace,
                name,
                error,
            )
        except KubeError as error:
            _log.warning("the status of ModelProfile %s/%s was not written: %s", namespace, name, error)
        else:
            shared.read = wanted
            shared.latest = str(answer["metadata"]["resourceVersion"])
            shared.versions.add(shared.latest)

    def _shared_of(self, service: Service) -> _Shared | None:
        if service.profile_name is None:
            return None
        key = (service.namespace, service.profile_name)
        body = self.cache.get(cluster.PROFILES, *key)
        if body is None:
            return None
        shared = self._shared.setdefault(key, _Shared())
        version = str(body["metadata"].get("resourceVersion", ""))
        if version not in shared.versions:
            self._look(shared, body, version)
        return shared

    def _look(self, shared: _Shared, body: Object, version: str) -> None:
        """A version that is not ours: somebody changed the object, or it is seen for the first time."""
        held = _held(body)
        if held != shared.read:
            shared.books.clear()
        shared.read, shared.latest, shared.versions = held, version, {version}

    def _book(self, service: Service, pair: Pair, kept: Iterable[CalibrationStatus | None]) -> Book:
        book = Book(pair=pair)
        for status in kept:
            if status is None or status.kv_cache_dtype != pair.kv_cache_dtype or not status.readings:
                continue
            problem = problem_of(status, pair, self.energy_model)
            if problem:
                _log.warning("%s: %s", service.owner, problem)
                book.ignored = problem
                continue
            book.readings = LearntReadings.of([bin_of(each) for each in status.readings])
            book.full_power.kept = full_power.from_status(status.full_power, wall=self.wall(), service=service.owner)
            book.ignored = ""
            break
        return book

    def _status(self, book: Book) -> CalibrationStatus:
        return CalibrationStatus(
            energy_model=self.energy_model,
            model=book.pair.model,
            accelerator=book.pair.accelerator,
            gpus_per_replica=book.pair.gpus_per_replica,
            kv_cache_dtype=book.pair.kv_cache_dtype,
            full_power=full_power.to_status(book.full_power.most()),
            readings=[
                LearntReading(
                    batch=float(f"{each.batch:.4g}"),
                    error_log=round(each.error_log, 4),
                    weight=round(each.weight, 2),
                    time=to_rfc3339(each.seconds),
                )
                for each in book.readings.bins
            ],
        )


def problem_of(status: CalibrationStatus, pair: Pair, energy_model: str) -> str:
    """Why readings that were kept are of no use to a pair and this version of the energy model; empty: none."""
    if status.energy_model != energy_model:
        return f"readings taken with {status.energy_model} are not used: the energy model is {energy_model}"
    if not pair.is_of(status):
        return (
            f"readings of {status.model} on {status.gpus_per_replica} x {status.accelerator} are not used: this is "
            f"{pair.model} on {pair.gpus_per_replica} x {pair.accelerator}"
        )
    return ""


def bin_of(kept: LearntReading) -> LearntBin:
    """A reading as status kept it."""
    return LearntBin(
        batch=kept.batch, error_log=kept.error_log, weight=kept.weight, seconds=from_rfc3339(kept.time) or 0.0
    )


def _held(body: Object) -> list[CalibrationStatus]:
    try:
        return list(ModelProfileStatus.model_validate(body.get("status") or {}).calibrations)
    except pydantic.ValidationError:
        return []


def _identity(status: CalibrationStatus) -> tuple[str, str, str, int, str]:
    """What readings are of, in an order to write them in."""
    gpus = status.gpus_per_replica or 0
    return status.kv_cache_dtype, status.model, status.accelerator, gpus, status.energy_model


def _changed(old: list[CalibrationStatus], new: list[CalibrationStatus]) -> bool:
    """True where the difference is worth a write."""
    if [(_identity(item), len(item.readings)) for item in old] != [
        (_identity(item), len(item.readings)) for item in new
    ]:
        return True
    if any(full_power.changed(one.full_power, other.full_power) for one, other in zip(old, new, strict=True)):
        return True
    pairs = [
        pair for one, other in zip(old, new, strict=True) for pair in zip(one.readings, other.readings, strict=True)
    ]
    return any(
        abs(before.error_log - after.error_log) > _ERROR_STEP
        or abs(before.weight - after.weight) > _WEIGHT_STEP * max(before.weight, after.weight)
        or abs(before.batch - after.batch) > _WEIGHT_STEP * before.batch
        for before, after in pairs
    )
