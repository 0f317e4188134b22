"""Tables of the factor analysis, in percent of the watts or joules instead of logarithms."""

import math
from collections.abc import Sequence

from wattkeeper.energy.contributions import DIMENSIONS
from wattkeeper.evaluation.factor_analysis import FactorAnalysis, Interval, Moved, TargetAnalysis
from wattkeeper.evaluation.rendering import Table

_MOST = 8
_LEAST_LOG = 5e-4


def summary(found: FactorAnalysis) -> str:
    """What the tables rest on."""
    return (
        f"{found.rows} runs of {found.data} ({found.groups} backbones), model {found.energy_model}, each compared with "
        f"a typical run: {found.typical}. Mean size over runs of what each part does, as the change it makes alone; in "
        "brackets the 90 % interval of a bootstrap over backbones."
    )


def tables(found: FactorAnalysis) -> list[Table]:
    """Dimensions, causes, interactions, the learned part, and what the data never vary."""
    made = [_dimensions(found)]
    made += [_causes(each) for each in found.targets]
    made += [_interactions(each) for each in found.targets]
    made.append(
        _moved(
            "learned",
            "Learned part of the watts, by factor",
            "TreeSHAP of the trees on the fitted prior, as half of what is learned, around their mean answer.",
            found.learned,
        )
    )
    made.append(
        Table(
            key="never-moved",
            title="What these data say nothing about",
            note="No contribution of their own: the data do not vary them. That is not to say they do nothing.",
            columns=("factor", "dimension", "why"),
            rows=found.never_moved,
        )
    )
    return made


def percent(log: float) -> str:
    """A size in ln units as percent."""
    return f"{100.0 * math.expm1(log):.1f} %"


def _range(size: Interval) -> str:
    return f"{percent(size.mean)} ({100.0 * math.expm1(size.low):.1f} to {100.0 * math.expm1(size.high):.1f})"


def _dimensions(found: FactorAnalysis) -> Table:
    first = found.targets
    errors = ", ".join(f"{percent(each.error_log)} for {each.target}" for each in first)
    return Table(
        key="dimensions",
        title="By dimension",
        note=(
            "Contribution: of the model's prediction, exact Shapley values. Check: by how much the error of a plain "
            "LightGBM (no physics) on models it has not seen grows where the columns of the dimension are shuffled "
            f"among the held-out runs; its error before is {errors}."
        ),
        columns=(
            "dimension",
            *(f"{each.target}, contribution" for each in first),
            *(f"{each.target}, check" for each in first),
        ),
        rows=tuple(
            (
                each.value,
                *(_range(target.dimensions[each.value]) for target in first),
                *(_range(target.lost[each.value]) for target in first),
            )
            for each in DIMENSIONS
        ),
    )  # fmt: skip


def _causes(target: TargetAnalysis) -> Table:
    return _moved(
        f"causes-{target.target}",
        f"{target.target}, by cause",
        "Causes of a dimension split its contribution (Owen values); sizes do not add up where signs differ.",
        target.causes,
    )


def _moved(key: str, title: str, note: str, moved: Sequence[Moved]) -> Table:
    shown = [each for each in moved if each.size.mean >= _LEAST_LOG][:_MOST]
    return Table(
        key=key,
        title=title,
        note=note,
        columns=("name", "dimension", "what", "mean size"),
        rows=tuple((each.name, each.dimension, each.description, _range(each.size)) for each in shown),
    )


def _interactions(target: TargetAnalysis) -> Table:
    names = [each.value for each in DIMENSIONS]
    return Table(
        key=f"interactions-{target.target}",
        title=f"{target.target}, interactions",
        note="Mean size of what two dimensions do together beyond what each does alone (Shapley interaction index).",
        columns=("", *names),
        rows=tuple(
            (name, *("" if row == column else percent(float(target.interactions[row, column])) for column in range(4)))
            for row, name in enumerate(names)
        ),
    )
