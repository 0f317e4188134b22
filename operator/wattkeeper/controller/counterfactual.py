"""What the savings account is held against: the fleet that runs where no operator moves anything.

All replicas that the bounds allow (or those asked for, without such a lever), at full power, with the engine arguments
in place: what keeps the SLO through a peak if nobody watches. It is predicted for the same traffic.
"""

from wattkeeper.domain.plan import Levers, Target


def replicas(levers: Levers, desired_replicas: int) -> int:
    """Its replica count."""
    return desired_replicas if levers.replicas is None else levers.replicas.maximum


def target(levers: Levers, current: Target, *, ready_replicas: int) -> Target:
    """The counterfactual of what is in place; never fewer replicas than are ready."""
    return Target(replicas=max(replicas(levers, current.replicas), ready_replicas), engine=current.engine)


def name(levers: Levers, desired_replicas: int) -> str:
    """In words."""
    return f"static: {replicas(levers, desired_replicas)} replicas at full power, predicted for the measured traffic"
