"""What to write into a node's NodePowerCap for one service: caps with a lease, other services' entries left alone.

An entry is `{uuid, watts, clockMHz, owner, expiresAt}`. It is written again only when its value changes or less than
half of its life (or what the caller sets) is left, so that a steady service costs one write per half life and a dead
operator's caps run out.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

Entry = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class CapConflict:
    """A GPU that another service holds."""

    uuid: str
    owner: str
    reason: str = "GpuHeldByOther"

    @property
    def message(self) -> str:
        """A sentence for the condition."""
        return f"GPU {self.uuid} already has a cap of {self.owner}; it is left as it is"


@dataclass(frozen=True, kw_only=True)
class CapsDecision:
    """The entries a node should have."""

    caps: list[Entry] | None
    """The whole new list; None: what is there stays."""
    conflicts: tuple[CapConflict, ...] = ()
    notes: tuple[str, ...] = ()
    """Sentences on clamped values and GPUs that the agent does not report."""


def decide_caps(
    existing: Mapping[str, Any] | None,
    *,
    gpus: Sequence[str],
    watts: float | None,
    owner: str,
    now_seconds: float,
    ttl_seconds: float,
    clock_mhz: float | None = None,
    renew_below_seconds: float | None = None,
    devices: Sequence[Mapping[str, Any]] = (),
) -> CapsDecision:
    """The NodePowerCap entries of one node, with those of `owner` ("namespace/name") as wanted.

    `existing` is the object's spec (None: there is no object yet); `gpus` are the UUIDs of the service's GPUs on this
    node; `watts` and `clock_mhz` are per GPU, both None: the service gives its GPUs back. Entries with less life than
    `renew_below_seconds` (None: half of `ttl_seconds`) are renewed. `devices` is status.devices,
    whose min and max bound the watts and whose list, where there is one, must name the GPU. Times in Unix seconds.
    """
    entries = [dict(entry) for entry in (existing or {}).get("caps") or ()]
    wanted = list(dict.fromkeys(gpus)) if watts is not None or clock_mhz is not None else []
    held = {entry.get("uuid"): str(entry.get("owner")) for entry in entries if _held(entry, owner, now_seconds)}
    reported = {device.get("uuid"): device for device in devices}
    conflicts: list[CapConflict] = []
    notes: list[str] = []
    values: dict[str, Entry] = {}
    for uuid in wanted:
        if uuid in held:
            conflicts.append(CapConflict(uuid=uuid, owner=held[uuid]))
        elif reported and uuid not in reported:
            notes.append(f"the agent does not report GPU {uuid}; no cap is asked for it")
        else:
            values[uuid] = _value(uuid, watts, clock_mhz, reported.get(uuid), notes)
    mine = [entry for entry in entries if entry.get("owner") == owner]
    kept = [entry for entry in entries if entry.get("owner") != owner and entry.get("uuid") not in values]
    same = {entry.get("uuid"): _without_lease(entry) for entry in mine} == values and len(mine) == len(values)
    least_seconds = ttl_seconds / 2 if renew_below_seconds is None else renew_below_seconds
    fresh = all(_remaining_seconds(entry, now_seconds) >= least_seconds for entry in mine)
    if same and fresh and len(kept) + len(mine) == len(entries):
        return CapsDecision(caps=None, conflicts=tuple(conflicts), notes=tuple(notes))
    expires = rfc3339(now_seconds + ttl_seconds)
    leased = [{**value, "owner": owner, "expiresAt": expires} for value in values.values()]
    return CapsDecision(caps=kept + leased, conflicts=tuple(conflicts), notes=tuple(notes))


def desired_caps(
    existing: Mapping[str, Any] | None,
    *,
    gpus: Sequence[str],
    watts: float | None,
    owner: str,
    now_seconds: float,
    ttl_seconds: float,
    clock_mhz: float | None = None,
    devices: Sequence[Mapping[str, Any]] = (),
) -> list[Entry] | None:
    """The new list of entries alone, None where nothing is to be written; see `decide_caps`."""
    return decide_caps(
        existing,
        gpus=gpus,
        watts=watts,
        owner=owner,
        now_seconds=now_seconds,
        ttl_seconds=ttl_seconds,
        clock_mhz=clock_mhz,
        devices=devices,
    ).caps


def release(existing: Mapping[str, Any] | None, *, owner: str) -> list[Entry] | None:
    """The entries without those of `owner`; None where it has none."""
    entries = [dict(entry) for entry in (existing or {}).get("caps") or ()]
    kept = [entry for entry in entries if entry.get("owner") != owner]
    return None if len(kept) == len(entries) else kept


def rfc3339(seconds: float) -> str:
    """Unix seconds as Kubernetes writes times: UTC, whole seconds, rounded down (a lease never grows by rounding)."""
    return datetime.fromtimestamp(math.floor(seconds), tz=UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _remaining_seconds(entry: Mapping[str, Any], now_seconds: float) -> float:
    """Life left; none where the time cannot be read."""
    try:
        expires = datetime.fromisoformat(str(entry.get("expiresAt")))
    except ValueError:
        return 0.0
    if expires.tzinfo is None:
        return 0.0
    return expires.timestamp() - now_seconds


def _held(entry: Mapping[str, Any], owner: str, now_seconds: float) -> bool:
    """True for a live entry of somebody else; one that ran out is void and may be taken over."""
    return entry.get("owner") != owner and _remaining_seconds(entry, now_seconds) > 0


def _without_lease(entry: Mapping[str, Any]) -> Entry:
    return {key: value for key, value in entry.items() if key not in ("owner", "expiresAt") and value is not None}


def _value(
    uuid: str, watts: float | None, clock_mhz: float | None, device: Mapping[str, Any] | None, notes: list[str]
) -> Entry:
    value: Entry = {"uuid": uuid}
    if watts is not None:
        low = (device or {}).get("min")
        high = (device or {}).get("max")
        allowed = max(watts, low) if low is not None else watts
        allowed = min(allowed, high) if high is not None else allowed
        if allowed != watts:
            notes.append(f"GPU {uuid} takes {low or 0:g} to {high or math.inf:g} W: {watts:g} W becomes {allowed:g} W")
        value["watts"] = allowed
    if clock_mhz is not None:
        value["clockMHz"] = clock_mhz
    return value
