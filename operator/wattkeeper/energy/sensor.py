"""Is the power sensor of a service to be believed? A small state machine over ticks; pure.

A broken sensor must not teach the energy model. Checks go from the certain to the likely, the first violated one
speaks:

| fault | what was seen | caught within |
|---|---|---|
| missing | fewer GPUs with watts than there are, after all had some | 4 ticks |
| negative | a GPU below zero | 2 |
| above limit | a GPU above `ABOVE_LIMIT` times its card's limit | 2 |
| zero | a serving GPU below `ZERO_SHARE` of its idle power | 2 |
| stuck | the same watts for `STUCK_TICKS` while the predicted ones moved by `STUCK_MOVE_LOG` | 6, if the load moves |
| jumped | `JUMP_LOG` away from the error so far at like load and setting | 2, while the load is steady |

Where watts are averaged over n ticks, as a direct scrape does, it comes n ticks later, and a change of setting or a
refit meanwhile costs `SETTLE_TICKS` more. Readings are told to be learnt only when nothing speaks against them: one
that equals the reading before waits until the watts move, one that is off by more than `STRANGE_LOG` waits
`HOLD_TICKS`; a fault that is confirmed meanwhile drops them. Trust comes back after `REGAIN_TICKS` without a violation.

Errors are natural logarithms of measured over predicted watts, so a change of load that the model follows cancels out.
A step below `JUMP_LOG` (a factor of 1.57) is a bias to be learnt. With noise of 5 % the threshold lies 8 standard
deviations out.
"""

import enum
import math
import statistics
from collections.abc import Hashable
from dataclasses import dataclass, field, replace

from wattkeeper.energy.calibration import Reading

ABOVE_LIMIT = 1.2
"""Cards overshoot their limit for moments, and the averages of exporters hide most of that."""
ZERO_SHARE = 0.3
STUCK_TICKS = 6
"""Longer than two scrapes of a Prometheus that scrapes every half minute."""
STUCK_MOVE_LOG = 0.08
"""A busy GPU draws little more at twice the load."""
JUMP_LOG = 0.45
"""Halfway (in logarithms) between a bias of 25 % and a doubling."""
JUMP_OVER_LOG = 0.3
"""A jumped sensor is sane again within this distance of where it was."""
STRANGE_LOG = 0.15
CONFIRM_TICKS, MISSING_TICKS, HOLD_TICKS, REGAIN_TICKS = 2, 4, 4, 4
SETTLE_TICKS = 2
"""After a change of replicas, cap, clock or arguments nothing is judged by prediction or learnt."""
NEW_NORMAL_TICKS = 240
"""A jump that lasts for so long (an hour), and is neither twofold nor beyond `NEW_NORMAL_LOG`, is taken for real."""
NEW_NORMAL_LOG = math.log(1.5)
_TWOFOLD_TOLERANCE_LOG = 0.15
_EQUAL = 1e-4
_AT_LIMIT = 0.97
"""A GPU at its limit may well draw the same watts for long."""
_REMEMBERED = 8
_LIKE_PREDICTED_LOG, _LIKE_RUNNING_LOG = 0.25, 0.35
_RUNNING_FLOOR = 4.0
KNOWN_SPREAD_LOG = 0.1
"""Without recent ticks, what was learnt earlier is a reference where it is known this well."""


class Fault(enum.StrEnum):
    """What is wrong; the reason of the condition."""

    MISSING = "PowerSensorMissing"
    NEGATIVE = "PowerSensorNegative"
    ABOVE_LIMIT = "PowerSensorAboveLimit"
    ZERO = "PowerSensorZero"
    STUCK = "PowerSensorStuck"
    JUMPED = "PowerSensorJumped"


@dataclass(frozen=True, kw_only=True)
class SensorTick:
    """What one tick shows."""

    watts_by_gpu: tuple[float | None, ...]
    """Of the GPUs that show up; None where a GPU has no finite watts."""
    expected_gpus: int
    limit_watts: float
    """Per GPU: the most the card can be allowed to draw."""
    cap_watts: float
    """Per GPU: the limit in force."""
    idle_watts: float
    """Per GPU, with the model loaded."""
    serving: bool
    """True where tokens are being made."""
    running: float
    """Requests in the engines at this moment."""
    predicted_watts: float
    """Of all GPUs, uncalibrated: what is learnt meanwhile must not look like a change."""
    known_error_log: float | None = None
    """What is known from earlier of the error at this batch; None: nothing, or not well enough."""
    setting: Hashable = None
    """Changes where replicas, limits or arguments do."""
    reading: Reading | None = None
    """What would be learnt of the tick."""

    @property
    def watts(self) -> float | None:
        """Sum over all GPUs; None where one is missing or is no number."""
        known = [each for each in self.watts_by_gpu if each is not None and math.isfinite(each)]
        return sum(known) if known and len(known) >= self.expected_gpus else None

    @property
    def error_log(self) -> float | None:
        """ln(measured / predicted); None where there is no such number."""
        watts, predicted = self.watts, self.predicted_watts
        if watts is None or not (math.isfinite(predicted) and predicted > 0.0 and watts > 0.0):
            return None
        return math.log(watts / predicted)


@dataclass(frozen=True, kw_only=True)
class _Run:
    """Ticks with the same watts, and the least and most that was predicted meanwhile."""

    watts: float
    ticks: int
    low_watts: float
    high_watts: float


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """A tick that was believed."""

    error_log: float
    predicted_watts: float
    running: float

    def like(self, tick: SensorTick) -> bool:
        """True where load and state were about the same."""
        predicted = abs(math.log(tick.predicted_watts / self.predicted_watts))
        running = abs(math.log((tick.running + _RUNNING_FLOOR) / (self.running + _RUNNING_FLOOR)))
        return predicted <= _LIKE_PREDICTED_LOG and running <= _LIKE_RUNNING_LOG


_Violation = tuple[Fault, str]


@dataclass(frozen=True, kw_only=True)
class Sensor:
    """State of one service's sensor. Immutable; not kept over a restart: a fault shows itself again within ticks."""

    fault: Fault | None = None
    message: str = ""
    """What was seen and what to do; empty where nothing is wrong."""
    dropped: int = 0
    """Readings that were not learnt because of a fault."""
    _suspect: Fault | None = None
    _suspect_ticks: int = 0
    _sane_ticks: int = 0
    _fault_ticks: int = 0
    _anchor_log: float | None = None
    """The usual error before the fault: what a sane sensor comes back to. None: not known."""
    _run: _Run | None = None
    _seen: tuple[_Seen, ...] = ()
    _held: tuple[Reading, ...] = ()
    _strange_ticks: int = 0
    _was_whole: bool = False
    _setting: Hashable = None
    _settling: int = 0
    learn: tuple[Reading, ...] = field(default=(), compare=False)
    """What the last tick released to be learnt."""

    @property
    def trusted(self) -> bool:
        """False while a fault is confirmed."""
        return self.fault is None

    @property
    def calm(self) -> bool:
        """True where nothing speaks against the last tick and nothing was changed just before it."""
        return self.fault is None and self._suspect is None and not self._settling

    @property
    def blank(self) -> bool:
        """True while no GPU ever showed watts."""
        return not self._was_whole

    def step(self, tick: SensorTick) -> "Sensor":
        """The state after one more tick; never raises for what a sensor may show."""
        after = replace(self, learn=(), _was_whole=self._was_whole or tick.watts is not None)
        after = after._settled(tick)._ran(tick)
        found = after._violation(tick)
        return after._doubted(tick, found) if found is not None else after._believed(tick)

    def _settled(self, tick: SensorTick) -> "Sensor":
        if self._setting is not None and tick.setting != self._setting:
            return replace(self, _setting=tick.setting, _settling=SETTLE_TICKS, _run=None)
        return replace(self, _setting=tick.setting, _settling=max(0, self._settling - 1))

    def _ran(self, tick: SensorTick) -> "Sensor":
        watts, predicted = tick.watts, tick.predicted_watts
        if watts is None or not math.isfinite(predicted):
            return replace(self, _run=None)
        run = self._run
        if run is None or abs(watts - run.watts) > _EQUAL * abs(run.watts):
            return replace(self, _run=_Run(watts=watts, ticks=1, low_watts=predicted, high_watts=predicted))
        low, high = min(run.low_watts, predicted), max(run.high_watts, predicted)
        return replace(self, _run=replace(run, ticks=run.ticks + 1, low_watts=low, high_watts=high))

    def _violation(self, tick: SensorTick) -> _Violation | None:
        for check in (_missing, _negative, _above_limit, _zero, _stuck, _jumped):
            found = check(self, tick)
            if found is not None:
                return found
        return None

    def _doubted(self, tick: SensorTick, found: _Violation) -> "Sensor":
        fault, message = found
        ticks = self._suspect_ticks + 1 if fault is self._suspect else 1
        suspected = replace(
            self,
            _suspect=fault,
            _suspect_ticks=ticks,
            _sane_ticks=0,
            _fault_ticks=self._fault_ticks + 1 if self.fault is not None else 0,
            dropped=self.dropped + (tick.reading is not None),
        )
        if ticks < _CONFIRM[fault] and fault is not self.fault:
            return suspected
        if fault is Fault.JUMPED and self.fault is Fault.JUMPED and _is_new_normal(self, tick):
            return replace(
                Sensor(dropped=self.dropped, _was_whole=True, _run=self._run, _setting=self._setting),
                learn=() if tick.reading is None else (tick.reading,),
            )
        return replace(
            suspected,
            fault=fault,
            message=message,
            dropped=suspected.dropped + len(self._held),
            _anchor_log=self._anchor_log if self.fault is not None else self._reference(tick),
            _held=(),
            _strange_ticks=0,
        )

    def _believed(self, tick: SensorTick) -> "Sensor":
        clear = replace(self, _suspect=None, _suspect_ticks=0)
        if self.fault is not None:
            sane = self._sane_ticks + 1
            if sane < REGAIN_TICKS:
                return replace(clear, _sane_ticks=sane, dropped=self.dropped + (tick.reading is not None))
            clear = replace(clear, fault=None, message="", _sane_ticks=0, _fault_ticks=0, _anchor_log=None)
        error = tick.error_log
        if error is None or self._settling:
            return clear
        return clear._weighed(tick, error)

    def _weighed(self, tick: SensorTick, error: float) -> "Sensor":
        """Release what may be learnt, hold what must wait."""
        reference = self._reference(tick)
        strange = reference is not None and abs(error - reference) > STRANGE_LOG
        held = self._held if tick.reading is None else (*self._held, tick.reading)
        waits = self._strange_ticks + 1 if strange else 0
        still = self._run is not None and self._run.ticks > 1
        if still or 0 < waits < HOLD_TICKS:
            return replace(self, _held=held[-_REMEMBERED:], _strange_ticks=waits)
        seen = _Seen(error_log=error, predicted_watts=tick.predicted_watts, running=tick.running)
        # What is strange for so long is the new reference.
        before = () if strange else self._seen
        return replace(self, _held=(), _strange_ticks=0, _seen=(*before, seen)[-_REMEMBERED:], learn=held)

    def _reference(self, tick: SensorTick) -> float | None:
        """The error that is usual at such a load; None where it is not known."""
        if not (math.isfinite(tick.predicted_watts) and tick.predicted_watts > 0.0):
            return None
        alike = [each.error_log for each in self._seen if each.like(tick)]
        if alike:
            return statistics.median(alike)
        return None if self._seen else tick.known_error_log


_CONFIRM = {
    Fault.MISSING: MISSING_TICKS,
    Fault.NEGATIVE: CONFIRM_TICKS,
    Fault.ABOVE_LIMIT: CONFIRM_TICKS,
    Fault.ZERO: CONFIRM_TICKS,
    Fault.STUCK: 1,
    Fault.JUMPED: CONFIRM_TICKS,
}


def _missing(sensor: Sensor, tick: SensorTick) -> _Violation | None:
    if tick.watts is not None or not sensor._was_whole or tick.expected_gpus < 1:
        return None
    known = sum(each is not None and math.isfinite(each) for each in tick.watts_by_gpu)
    return Fault.MISSING, (
        f"{known} of {tick.expected_gpus} GPUs show watts, all did before: see the exporter on their nodes, and "
        "whether its series name the GPU's pod."
    )


def _finite(tick: SensorTick) -> list[float]:
    return [each for each in tick.watts_by_gpu if each is not None and math.isfinite(each)]


def _negative(_sensor: Sensor, tick: SensorTick) -> _Violation | None:
    lowest = min(_finite(tick), default=0.0)
    if lowest >= 0.0:
        return None
    return Fault.NEGATIVE, f"a GPU shows {lowest:.0f} W: no power is below zero, see the exporter on its node."


def _above_limit(_sensor: Sensor, tick: SensorTick) -> _Violation | None:
    highest = max(_finite(tick), default=0.0)
    if highest <= ABOVE_LIMIT * tick.limit_watts:
        return None
    return Fault.ABOVE_LIMIT, (
        f"a GPU shows {highest:.0f} W and can draw at most {tick.limit_watts:.0f} W: is it counted twice, in another "
        "unit, or is the power of the whole node?"
    )


def _zero(_sensor: Sensor, tick: SensorTick) -> _Violation | None:
    lowest = min(_finite(tick), default=math.inf)
    if not tick.serving or lowest >= ZERO_SHARE * tick.idle_watts:
        return None
    return Fault.ZERO, (
        f"a GPU shows {lowest:.0f} W while tokens are made, and draws about {tick.idle_watts:.0f} W even when idle: "
        "restart the exporter on its node."
    )


def _stuck(sensor: Sensor, tick: SensorTick) -> _Violation | None:
    run = sensor._run
    if run is None or run.watts <= 0.0 or run.low_watts <= 0.0:
        return None
    if sensor.fault is Fault.STUCK and run.ticks > 1:
        return Fault.STUCK, sensor.message
    moved = math.log(run.high_watts / run.low_watts)
    at_limit = run.watts >= _AT_LIMIT * tick.cap_watts * tick.expected_gpus
    if run.ticks < STUCK_TICKS or moved <= STUCK_MOVE_LOG or at_limit:
        return None
    return Fault.STUCK, (
        f"measured power stays at {run.watts:.0f} W while the load moves (predicted {run.low_watts:.0f} to "
        f"{run.high_watts:.0f} W): restart the exporter on these nodes."
    )


def _jumped(sensor: Sensor, tick: SensorTick) -> _Violation | None:
    error = tick.error_log
    if error is None:
        return None
    if sensor.fault is not None:
        usual, reach = sensor._anchor_log, JUMP_OVER_LOG
    else:
        usual, reach = None if sensor._settling else sensor._reference(tick), JUMP_LOG
    if usual is None or abs(error - usual) <= reach:
        return None
    return Fault.JUMPED, (
        f"measured power is suddenly {math.exp(error - usual):.2f} times what it was at this load and setting: do two "
        "exporters count the same GPU, or does another workload use it?"
    )


def _is_new_normal(sensor: Sensor, tick: SensorTick) -> bool:
    error = tick.error_log
    if error is None or sensor._anchor_log is None or sensor._fault_ticks < NEW_NORMAL_TICKS:
        return False
    twofold = abs(abs(error - sensor._anchor_log) - math.log(2.0)) < _TWOFOLD_TOLERANCE_LOG
    return not twofold and abs(error) < NEW_NORMAL_LOG
