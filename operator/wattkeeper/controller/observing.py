"""Step 2 of a pass: the collector's last snapshot becomes what is known of a service, and older ones its record."""

from dataclasses import dataclass, replace

from wattkeeper.controller import caps
from wattkeeper.controller.clock import Clock
from wattkeeper.controller.entry import Entry
from wattkeeper.controller.measure import Measurements
from wattkeeper.controller.settings import OperatorSettings
from wattkeeper.telemetry.observe import observe


@dataclass(kw_only=True)
class Observer:
    """Observes services; what it finds goes into their entries and their states."""

    measurements: Measurements
    settings: OperatorSettings
    clock: Clock

    def observe(self, entry: Entry, view: caps.PowerView, wall: float) -> None:
        """One service; `wall` is the time now."""
        service, state = entry.service, entry.state
        if service.target is None:
            return
        snapshot, error = self.measurements.of(service)
        if snapshot is None and error is None:
            return  # the first collection since the start is under way: nothing is missing yet
        gpus_by_pod = view.gpus(service)
        for shown in self.measurements.since(service, state.snapshot_seen):
            state.dispersion.update(namespace=service.namespace, pods=service.pod_names, snapshot=shown)
            state.spread.update(namespace=service.namespace, pods=service.pod_names, snapshot=shown)
            state.learning.observe(
                shown,
                namespace=service.namespace,
                pods=service.pod_names,
                current=entry.current,
                workload=state.workload,
                gpus_by_pod=gpus_by_pod,
                rolling_out=service.rolling_out,
            )
        state.learning.conclude(wall)
        observation = observe(
            pods=service.pod_names,
            namespace=service.namespace,
            snapshot=snapshot,
            snapshot_error=error,
            now_seconds=wall,
            max_age_seconds=service.spec.metrics.max_age,
            slo=service.slo,
            last_workload=state.workload,
            dispersion=self.settings.dispersion or state.dispersion.value,
            # Counted in wall time: sped up, a bin would span minutes and its edges jitter by seconds.
            arrivals=state.dispersion.record if self.clock.speed_up == 1.0 else None,
            longest_tokens=None if service.profile is None else service.profile.max_model_len,
            gpus_per_pod=service.gpus_per_replica,
            gpus_by_pod=gpus_by_pod,
        )
        used_pods, unused_pods = state.spread.used_and_unused or (None, None)
        observation = replace(observation, used_pods=used_pods, unused_pods=unused_pods)
        entry.observation = observation
        if snapshot is not None:
            keys = ((pod, (service.namespace, pod)) for pod in service.pod_names)
            entry.readings = {pod: snapshot.pods[key] for pod, key in keys if key in snapshot.pods}
        if observation.workload is not None and observation.state.usable:
            state.workload = observation.workload
            if snapshot is not None and snapshot.time_seconds > state.snapshot_seen:
                state.rates.append(
                    self.clock.decision_time(snapshot.time_seconds), observation.workload.requests_per_second
                )
        if snapshot is not None:
            state.snapshot_seen = snapshot.time_seconds
