"""What a search knows of one service: its candidates with their violations and their price."""

from dataclasses import dataclass, field

from wattkeeper.domain.errors import WattkeeperError
from wattkeeper.domain.plan import Binding
from wattkeeper.planner.evidence import UNKNOWN, Evidence, Judged
from wattkeeper.planner.sizing import Case, Figures, Ledger, Required, Row

DATA_ERRORS = (WattkeeperError, ValueError, ArithmeticError)
"""What bad data of one service may raise; anything else is a programming error."""


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A candidate with its violations and its price."""

    row: Row
    violation: Binding
    """NONE where it is feasible once all its replicas serve."""
    blocked: str
    """Why it may not be taken now although feasible (timers, no replay); empty where it may."""
    waiting: str
    """Why its power limits must wait (timers, starting replicas); empty where they need not."""
    watts: float
    """Expected of all GPUs; nan where not feasible and not in place."""
    low_watts: float
    high_watts: float
    move_watts: float
    """Energy of getting there (replicas starting), spread over the expected stay."""
    figures: Figures
    held: bool = False
    """True where nothing but a missing or failed replay blocks it."""
    judged: Judged = UNKNOWN
    """What replays say of it."""

    @property
    def score(self) -> float:
        """Watts with the price of the move."""
        return self.watts + self.move_watts

    @property
    def open(self) -> bool:
        """True where it may be taken now; its limits follow as soon as they may."""
        return self.violation is Binding.NONE and not self.blocked


@dataclass(kw_only=True)
class Search:
    """What was found for one service."""

    case: Case
    ledger: Ledger
    required: dict[int, Required] = field(default_factory=dict)
    """Least replicas at the planned rate, by engine index."""
    floors: dict[int, int] = field(default_factory=dict)
    """Least replicas that a scale-down may go to, by engine index: they carry the stabilised rate."""
    evidence: Evidence | None = None
    """From replays; None where no replay stage is configured."""
    hopeless: bool = False
    """True where the upper bound of replicas at full power misses the SLO even when nearly idle."""
    scored: list[Scored] = field(default_factory=list)
    error: str = ""
    """Why the service could not be planned; empty where it could."""
