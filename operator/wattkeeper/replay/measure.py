"""Measures a run where it happens, in the simulated fleet: energy, requests, latencies, and everything over time."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from wattkeeper.domain.plan import Slo
from wattkeeper.replay.result import JOULES_PER_KWH, QUANTILES, Columns, Energy, Hours, Latency, Requests
from wattkeeper.traces.trace import Trace
from wattkeeper.twin.deployment import Deployment, PodPhase
from wattkeeper.twin.fleet import Fleet, Service

FloatArray = npt.NDArray[np.float64]
_HOUR_SECONDS = 3600.0
WINDOW_SECONDS = 600.0
"""Of `Run.windows_below_goal`."""


class Recorder:
    """Call `take` at the end of every interval; times are those of the trace, which begins at zero."""

    def __init__(self, deployment: Deployment, *, interval_seconds: float, parked_counts: bool) -> None:
        self.interval_seconds = interval_seconds
        self._deployment, self._parked = deployment, parked_counts
        self._rows: list[tuple[float | None, ...]] = []
        self._joules = self._seconds = 0.0
        self._hours: dict[int, list[float]] = {}
        self._tokens = 0

    @property
    def _fleet(self) -> Fleet:
        return self._deployment.fleet

    @property
    def _service(self) -> Service:
        return self._deployment.service

    def joules(self) -> float:
        """All that counts, so far."""
        return self._service.energy_joules + (self._fleet.parked_joules if self._parked else 0.0)

    def take(self) -> None:
        """An interval ends now."""
        now, deployment = self._fleet.now, self._deployment
        seconds = now - self._seconds
        if seconds <= 0:
            return
        pods = deployment.pods()
        phases = [view.phase for view in pods]
        members = list(self._service.members.values())
        ready = [member for member in self._service.ready() if member.replica is not None]
        clocks = [gpu.clock_mhz for member in ready for gpu in member.gpus]
        usage = [member.replica.kv_usage for member in ready if member.replica is not None]
        limits = [gpu.requested_watts for member in ready for gpu in member.gpus]
        locks = [gpu.requested_clock_mhz for member in ready for gpu in member.gpus]
        joules, tokens = self.joules(), self._service.ledger.output_tokens
        hour = self._hours.setdefault(int((now - 1e-9) // _HOUR_SECONDS), [0.0, 0.0])
        hour[0] += joules - self._joules
        hour[1] += tokens - self._tokens
        self._rows.append(
            (
                now,
                (joules - self._joules) / seconds,
                deployment.desired,
                phases.count(PodPhase.READY),
                phases.count(PodPhase.STARTING) + phases.count(PodPhase.PENDING),
                phases.count(PodPhase.DRAINING),
                _least_strict(limits),
                _least_strict(locks),
                sum(clocks) / len(clocks) if clocks else None,
                sum(len(member.replica.running) for member in members if member.replica is not None),
                sum(len(member.replica.waiting) for member in members if member.replica is not None),
                sum(usage) / len(usage) if usage else None,
                deployment.hardware.max_num_batched_tokens,
                deployment.hardware.max_num_seqs,
            )
        )
        self._seconds, self._joules, self._tokens = now, joules, tokens

    def energy(self) -> Energy:
        """By what the GPUs did, so far."""
        service, fleet = self._service, self._fleet
        busy = service.energy_joules - service.startup_joules - service.idle_joules
        return Energy(
            busy_kwh=busy / JOULES_PER_KWH,
            idle_kwh=service.idle_joules / JOULES_PER_KWH,
            startup_kwh=service.startup_joules / JOULES_PER_KWH,
            parked_kwh=fleet.parked_joules / JOULES_PER_KWH if self._parked else 0.0,
        )

    def columns(self, trace: Trace, served: "Served") -> Columns:
        """Everything over time; latencies and attainment by time of arrival."""
        table: list[Sequence[float | None]] = [list(column) for column in zip(*self._rows, strict=True)]
        ends = np.array(table[0], dtype=np.float64)
        count = len(ends)
        of_request = np.searchsorted(ends, served.arrival, side="left").clip(0, count - 1)
        arrived = np.bincount(
            np.searchsorted(ends, trace.times_seconds, side="left").clip(0, count - 1), minlength=count
        )
        met = np.bincount(of_request, weights=served.met, minlength=count)
        lengths = np.diff(ends, prepend=0.0)

        def whole(index: int) -> tuple[int, ...]:
            return tuple(int(value or 0) for value in table[index])

        return Columns(
            interval_seconds=self.interval_seconds,
            time_seconds=tuple(ends.tolist()),
            power_watts=tuple(float(value or 0.0) for value in table[1]),
            desired=whole(2),
            ready=whole(3),
            starting=whole(4),
            draining=whole(5),
            cap_watts=tuple(table[6]),
            clock_limit_mhz=tuple(table[7]),
            clock_mhz=tuple(table[8]),
            requests_per_second=tuple((arrived / lengths).tolist()),
            met=tuple(met.astype(int).tolist()),
            arrived=tuple(arrived.tolist()),
            ttft_p95_seconds=_p95(served.ttft, of_request, count),
            tpot_p95_seconds=_p95(served.tpot, of_request, count),
            running=whole(9),
            waiting=whole(10),
            kv_usage=tuple(table[11]),
            max_num_batched_tokens=whole(12),
            max_num_seqs=whole(13),
        )

    def hours(self, trace: Trace, served: "Served") -> Hours:
        """Sums per hour; requests by time of arrival, tokens by time of completion."""
        count = max(self._hours, default=0) + 1
        arrived = np.bincount((trace.times_seconds // _HOUR_SECONDS).astype(int).clip(0, count - 1), minlength=count)
        met = np.bincount(
            (served.arrival // _HOUR_SECONDS).astype(int).clip(0, count - 1), weights=served.met, minlength=count
        )
        sums = [self._hours.get(index, [0.0, 0.0]) for index in range(count)]
        return Hours(
            energy_kwh=tuple(joules / JOULES_PER_KWH for joules, _ in sums),
            arrived=tuple(arrived.tolist()),
            met=tuple(met.astype(int).tolist()),
            output_tokens=tuple(int(tokens) for _, tokens in sums),
        )


class Served:
    """The finished requests; arrays of shape (N,), seconds."""

    def __init__(self, service: Service, slo: Slo) -> None:
        self.arrival, self.ttft, self.tpot = service.ledger.samples()
        within = np.ones(len(self.arrival), dtype=np.bool_)
        if slo.ttft is not None:
            within &= self.ttft <= slo.ttft.seconds
        self.missed_ttft = int(np.count_nonzero(~within))
        if slo.tpot is not None:
            within &= self.tpot <= slo.tpot.seconds
        self.met = within

    def requests(self, service: Service, trace: Trace) -> Requests:
        """Counts over the whole trace."""
        ledger, met = service.ledger, int(np.count_nonzero(self.met))
        return Requests(
            arrived=len(trace),
            finished=len(self.arrival),
            unfinished=len(trace) - len(self.arrival) - ledger.lost,
            lost={reason: count for reason, count in ledger.lost_by_reason.items() if count},
            met=met,
            missed_ttft=self.missed_ttft,
            missed_tpot=len(self.arrival) - met - self.missed_ttft,
            prompt_tokens=ledger.prompt_tokens,
            output_tokens=ledger.output_tokens,
        )

    def windows_below(self, goal: float, trace: Trace) -> float | None:
        """Share of ten-minute windows with arrivals whose attainment is below the goal."""
        count = int(np.ceil(max(trace.span_seconds, 1.0) / WINDOW_SECONDS))
        arrived = np.bincount((trace.times_seconds // WINDOW_SECONDS).astype(int).clip(0, count - 1), minlength=count)
        met = np.bincount(
            (self.arrival // WINDOW_SECONDS).astype(int).clip(0, count - 1), weights=self.met, minlength=count
        )
        used = arrived > 0
        if not used.any():
            return None
        return float(np.mean(met[used] < goal * arrived[used]))


def _least_strict(limits: Sequence[float | None]) -> float | None:
    """What all GPUs keep at least; None where one of them, or all, are free."""
    asked = [limit for limit in limits if limit is not None]
    return max(asked) if asked and len(asked) == len(limits) else None


def latency(values: FloatArray) -> Latency:
    """Percentiles and the grid of a CDF."""
    if not len(values):
        return Latency(p50_seconds=None, p95_seconds=None, p99_seconds=None, grid_seconds=())
    grid = np.quantile(values, QUANTILES)
    p50, p95, p99 = (float(np.percentile(values, level)) for level in (50.0, 95.0, 99.0))
    return Latency(p50_seconds=p50, p95_seconds=p95, p99_seconds=p99, grid_seconds=tuple(grid.tolist()))


def _p95(values: FloatArray, index: npt.NDArray[np.int64], count: int) -> tuple[float | None, ...]:
    order = np.argsort(index, kind="stable")
    edges = np.searchsorted(index[order], np.arange(count + 1))
    ordered = values[order]
    return tuple(
        float(np.percentile(ordered[begin:end], 95.0)) if end > begin else None
        for begin, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)
    )
