"""Training of the energy model: from public measured runs to one file, with its card.

The same data and seed give the same bytes on one machine. Elsewhere the last digits of linear algebra differ: watts
agree to within half a per cent on average.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from wattkeeper.domain import sealed, whole_file
from wattkeeper.domain.errors import DataFileError
from wattkeeper.energy import artefact, data, evaluate, factors, fitting, learned, own_rows
from wattkeeper.energy.artefact import Payload
from wattkeeper.energy.evaluate import SplitResult

LIMITS = (
    "Learned from steady closed-loop runs on H100 and B200 with vLLM 0.11.1; elsewhere it fades to physics.",
    "No public data moves power cap, clock, token budget or prefix hits on these cards: physics alone carries them.",
    "Some B200 runs are bound by the host: the same setting drew up to twice the power on another task.",
    "Prompt lengths are not published with these runs and were assumed per task.",
    "Constants of the catalogue's physical estimate (shares of peak, overheads) were fitted to a part of the same "
    "runs, and some terms of the learned prior were written down by people who had seen the table.",
    "It foresees watts; a running service knows its tokens. Energy per token without a live measurement, readings of a "
    "new deployment and other data sets: `wattkeeper evaluate energy`.",
)
MODEL = "model"
"""What ships, among the methods of a result."""
SPLITS = ("curve", "model", "backbone")
_FOLDS = 5


def train(
    folder: Path, *, own: Sequence[Path] = (), seed: int = 0, report: Callable[[str], None] = lambda _: None
) -> tuple[Payload, list[SplitResult]]:
    """Load, evaluate, fit. `own` are files of a user's steady runs (`energy.own_rows`), which join the public ones.

    Raises DataFileError: a data file is missing or not the expected one. RefusedRowsError: impossible own rows.
    """
    report("loading measured runs")
    closed = data.load_ml_energy(folder)
    for path in own:
        closed = joined(closed, path)
        report(f"with {path}: {len(closed)} runs")
    return trained(closed, seed=seed, report=report)


def trained(
    closed: pd.DataFrame, *, seed: int, folds: int = _FOLDS, report: Callable[[str], None] = lambda _: None
) -> tuple[Payload, list[SplitResult]]:
    """The model of closed-loop runs with its card, and how accurate it is on runs it has not seen."""
    given = fitting.measured(closed)
    results = []
    for split in SPLITS:
        report(f"watts, unseen {split}")
        results.append(
            evaluate.evaluate(
                given.rows, given.groups(split), evaluate.METHODS, data=str(closed["source"].iloc[0]), target="watts",
                split=f"unseen {split}", folds=folds, seed=seed,
                given={MODEL: fitting.held_out(given, split, folds=folds, seed=seed)},
            )
        )  # fmt: skip
    report("fitting on all closed-loop runs")
    payload = fitting.payload(given, np.arange(len(given.rows)), seed=seed)
    return replace(payload, card=_card(closed, results, seed=seed)), results


def joined(closed: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Public runs and a user's own ones, whose measured batch stands where no closed loop held it.

    Raises DataFileError: no file of runs, or only the node's power was measured. RefusedRowsError: impossible rows.
    """
    rows = own_rows.read(path)
    if rows["gpu_watts"].isna().any():
        raise DataFileError(f"{path}: watts of GPUs are learned; rows with node_watts alone must be left out")
    rows["max_num_seqs"] = rows["max_num_seqs"].fillna(rows["batch"])
    return pd.concat([closed, rows], ignore_index=True)


def _card(closed: pd.DataFrame, results: list[SplitResult], *, seed: int) -> dict[str, Any]:
    own = int((closed["source"] != data.ML_ENERGY_V3.name).sum())
    return {
        "title": "Watts per busy GPU of vLLM serving: fitted physics x exp(mean of LightGBM and a Gaussian process)",
        "target": "ln(measured watts per GPU / those of the fitted prior)",
        "trained_on": {
            "rows": len(closed),
            "models": int(closed["model"].nunique()),
            "gpus": sorted(set(closed["gpu"])),
            **({"own_rows": own} if own else {}),
        },
        "data": [data.ML_ENERGY_V3.provenance()],
        "split": "grouped cross-validation, groups never split; 90 % group-bootstrap intervals",
        "method": {
            "prior": "positive sum of the terms of a step, pseudo-Huber loss; list of terms chosen on inner folds",
            "boosters": learned.BOOSTERS,
            "trees": learned.TREES,
            "leaves": learned.LEAVES,
            "learning_rate": learned.RATE,
            "process": "facts, and what model, backbone, task and deployment have in common over the batch",
            "intervals": "spread of the process, scaled on inner folds that hold out curves or backbones",
            "seed": seed,
        },
        "score": "100 - MAPE in percent, on held-out groups",
        "results": [result.to_dict() for result in results],
        "licence": "Apache-2.0; the file holds learned numbers, and of each public run its settings and residual",
        "limits": list(LIMITS),
    }


def write(payload: Payload, path: Path) -> None:
    """Write the model file, and its card beside it as MODEL_CARD.md."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sealed.write(path, artefact.dump(payload))
    whole_file.write(path.with_name("MODEL_CARD.md"), card_markdown(payload).encode())


def card_markdown(payload: Payload) -> str:
    """The model card for people."""
    card = payload.card
    lines = [f"# {card['title']}", "", "Written by `wattkeeper train`.", "", "## Data", ""]
    for source in card["data"]:
        lines.append(f"- **{source['name']}**: {source['rows']} runs. {source['repository']} at {source['commit']}:")
        lines.append(f"  {', '.join(source['paths'])}. Licence: {source['licence']}. SHA-256 of the used values:")
        lines.append(f"  `{source['sha256']}`.")
    trained = card["trained_on"]
    lines += [
        "",
        f"Trained on {trained['rows']} runs of {trained['models']} models on {', '.join(trained['gpus'])}"
        + (f", {trained['own_rows']} of them a user's own." if "own_rows" in trained else "."),
        "",
    ]
    lines += ["## Accuracy on held-out groups", "", f"{card['score']} (90 % interval); {card['split']}.", ""]
    lines += table_markdown(card["results"])
    widths = {f"unseen {name}": f"{_median_half_width(card, name):.0%}" for name in SPLITS}
    lines += ["", "Median 90 % half-widths of the shipped intervals: " + ", ".join(
        f"{name} {width}" for name, width in widths.items()) + "; before the physical estimate alone "
        f"{np.expm1(payload.half_width['physics']):.0%}."]  # fmt: skip
    lines += ["", "## Factors", "", "| factor | dimension | unit | known | what |", "|---|---|---|---|---|"]
    lines += [
        f"| {f.name} | {f.dimension.value} | {f.unit} | {f.known.value} | {f.description} |" for f in factors.FACTORS
    ]
    lines += [
        f"| {f.name} | {f.dimension.value} | {f.unit} | not learned | {f.reason} |" for f in factors.UNLEARNED_FACTORS
    ]
    lines += ["", "## Limits", "", *(f"- {limit}" for limit in card["limits"]), "", f"Licence: {card['licence']}.", ""]
    return "\n".join(lines)


def _median_half_width(card: dict[str, Any], split: str) -> float:
    found = next(result for result in card["results"] if result["split"] == f"unseen {split}")
    return float(np.expm1(found["half_width_log"][MODEL]))


def table_markdown(results: list[dict[str, Any]]) -> list[str]:
    """The error table as Markdown lines."""
    methods = list(results[0]["scores"])
    lines = ["| data | target | held out | runs | " + " | ".join(methods) + " | coverage |"]
    lines.append("|---" * (len(methods) + 5) + "|")
    for result in results:
        scores = [f"{s['value']:.1f} ({s['low']:.1f} to {s['high']:.1f})" for s in result["scores"].values()]
        target = "W per GPU" if result["target"] == "watts" else "J/token"
        cells = [result["data"], target, f"{result['split']} ({result['groups']})", str(result["rows"]), *scores]
        lines.append("| " + " | ".join([*cells, f"{result['coverage'][MODEL]:.0%}"]) + " |")
    return lines
