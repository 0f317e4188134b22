"""The simulated node agent: obeys NodePowerCap objects and reports what the cards really do.

One object per GPU node, named after the node, made here where it is missing (as an agent does on its start). An entry
counts until `expiresAt`; a GPU without a valid entry runs at its default limit and unlocked clock.
"""

import datetime as dt
import json
import logging
import queue
import threading
import time
from collections.abc import Sequence
from typing import Any

import urllib3
from kubernetes import client

from wattkeeper.api.base import GROUP, VERSION
from wattkeeper.twin.fleet import Fleet
from wattkeeper.twin.kube import Json, Mirror
from wattkeeper.twin.nodes import Gpu, Inventory

LOGGER = logging.getLogger(__name__)
PLURAL = "nodepowercaps"
REPORT_SECONDS = 1.0
"""Wall time between two status reports of a node."""
REQUEST_TIMEOUT_SECONDS = 10


class NodeAgent:
    """Caps in, status out, for all simulated nodes. Reports are written from a thread of their own."""

    def __init__(self, api: client.ApiClient) -> None:
        self._objects = client.CustomObjectsApi(api)
        self._caps = Mirror(
            PLURAL,
            lambda **options: self._objects.list_cluster_custom_object(GROUP, VERSION, PLURAL, **options),
        )
        self._in_force: dict[str, tuple[float | None, float | None]] = {}
        self._reported: dict[str, tuple[float, Any]] = {}
        self._outbox: queue.Queue[tuple[str, Json | None]] = queue.Queue()
        self._since = _stamp()
        self._writer = threading.Thread(target=self._write, name="twin-agent", daemon=True)

    @property
    def mirrors(self) -> tuple[Mirror, ...]:
        """What must be started and synced first."""
        return (self._caps,)

    def enforce(self, fleet: Fleet) -> None:
        """Bring the limits of all GPUs to what is asked for now."""
        wanted: dict[str, tuple[float | None, float | None]] = {}
        now = dt.datetime.now(dt.UTC)
        for item in self._caps.objects().values():
            for entry in item.get("spec", {}).get("caps") or []:
                if not expired(str(entry.get("expiresAt", "")), now):
                    wanted[entry["uuid"]] = (entry.get("watts"), entry.get("clockMHz"))
        if wanted == self._in_force:
            return
        for uuid, gpu in fleet.inventory.by_uuid().items():
            watts, clock = wanted.get(uuid, (None, None))
            if (gpu.requested_watts, gpu.requested_clock_mhz) != (watts, clock):
                fleet.set_power(gpu, watts=watts, clock_mhz=clock)
        self._in_force = wanted

    def report(self, inventory: Inventory) -> None:
        """Queue status reports that are due; a node without its object gets one first."""
        if not self._writer.is_alive():
            self._writer.start()
        present = {name: item for (_, name), item in self._caps.objects().items()}
        now = time.monotonic()
        for node, gpus in inventory.nodes.items():
            last, limits = self._reported.get(node, (-REPORT_SECONDS, None))
            in_force = [(gpu.limit_watts, gpu.requested_clock_mhz, gpu.holder) for gpu in gpus]
            if now - last < REPORT_SECONDS and (limits == in_force or now - last < REPORT_SECONDS / 5):
                continue
            self._reported[node] = (now, in_force)
            if node not in present:
                self._outbox.put((node, None))
            else:
                generation = int(present[node]["metadata"].get("generation", 0))
                self._outbox.put((node, {"status": status(gpus, generation, since=self._since, now=_stamp())}))

    def _write(self) -> None:
        while True:
            node, body = self._outbox.get()
            try:
                if body is None:
                    self._objects.create_cluster_custom_object(
                        GROUP,
                        VERSION,
                        PLURAL,
                        _empty(node),
                        _request_timeout=REQUEST_TIMEOUT_SECONDS,
                    )
                else:
                    self._objects.patch_cluster_custom_object_status(
                        GROUP, VERSION, PLURAL, node, body, _request_timeout=REQUEST_TIMEOUT_SECONDS
                    )
            except client.ApiException as error:
                if error.status not in (404, 409):
                    LOGGER.warning("status of NodePowerCap %s not written: %s", node, error.body or error.reason)
            except (urllib3.exceptions.HTTPError, json.JSONDecodeError) as error:
                LOGGER.warning("status of NodePowerCap %s not written: %s", node, error)


def _empty(node: str) -> Json:
    return {"apiVersion": f"{GROUP}/{VERSION}", "kind": "NodePowerCap", "metadata": {"name": node}, "spec": {}}


def expired(stamp: str, now: dt.datetime) -> bool:
    """Whether an RFC 3339 time has passed; what cannot be read has expired, so that no card stays capped by mistake."""
    try:
        time_of = dt.datetime.fromisoformat(stamp)
    except ValueError:
        return True
    if time_of.tzinfo is None:
        return True
    return time_of <= now


def _stamp() -> str:
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def status(gpus: Sequence[Gpu], generation: int, *, since: str, now: str) -> Json:
    """What the agent of a node with these GPUs reports; `since` and `now` as the API writes times."""
    return {
        "observedGeneration": generation,
        "heartbeat": now,
        "summary": _summary(gpus),
        "devices": [_device(gpu) for gpu in gpus],
        "conditions": [
            {
                "type": "Ready",
                "status": "True",
                "reason": "Simulated",
                "message": "the twin stands in for the node's agent",
                "lastTransitionTime": since,
                "observedGeneration": generation,
            }
        ],
    }


def _summary(gpus: Sequence[Gpu]) -> str:
    limits = sorted({gpu.limit_watts for gpu in gpus if gpu.requested_watts is not None})
    if not limits:
        return f"{len(gpus)} GPUs, none limited"
    count = sum(gpu.requested_watts is not None for gpu in gpus)
    span = f"{limits[0]:.0f}" if len(limits) == 1 else f"{limits[0]:.0f}-{limits[-1]:.0f}"
    return f"{count} of {len(gpus)} GPUs limited to {span} W"


def _device(gpu: Gpu) -> Json:
    values = {
        "uuid": gpu.uuid,
        "model": gpu.card.dcgm_name,
        "pods": [f"{gpu.holder.namespace}/{gpu.holder.pod}"] if gpu.holder else [],
        "min": gpu.card.minimum_cap_watts,
        "default": gpu.card.tdp_watts,
        "max": gpu.card.tdp_watts,
        "requested": gpu.requested_watts,
        "clamped": gpu.limit_watts if gpu.requested_watts is not None else None,
        "enforced": gpu.limit_watts,
        "measured": round(gpu.power_watts, 1),
        "clockMHz": round(gpu.clock_mhz),
    }
    return {name: value for name, value in values.items() if value is not None}
