"""Training of the energy model: from public measured runs to one file, the same bytes for the same data and seed.

What is learned is ln(measured / estimated) of the watts per busy GPU. The intervals come from groups that were held
out: the curve of a known model for models in the data, whole model families for all others.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from wattkeeper.domain.errors import DataFileError
from wattkeeper.energy import artefact, baselines, data, estimate, evaluate, factors, own_rows
from wattkeeper.energy.artefact import Payload
from wattkeeper.energy.evaluate import SplitResult

LIMITS = (
    "Learned from steady closed-loop runs on H100 and B200 with vLLM 0.11.1; elsewhere it fades to physics.",
    "No public data moves power cap, clock, token budget or prefix hits on these cards: physics alone carries them.",
    "Some B200 runs are bound by the host: the same setting drew up to twice the power on another task.",
    "Prompt lengths are not published with these runs and were assumed per task.",
    "Constants of the physical estimate (shares of peak, overheads) were fitted to a part of the same runs.",
    "The J/token rows show how well energy per token is foreseen without a live measurement of throughput; a running "
    "service knows its tokens, so there the error is that of the watts.",
    "The node power of nlr-h100 includes CPUs; it checks the method and is not in the trained file.",
)


def fit(closed: pd.DataFrame, results: list[SplitResult], *, seed: int) -> Payload:
    """The payload learned from all closed-loop runs, with intervals and card from the evaluation."""
    estimated = estimate.closed_loop_runs(closed)
    rows, _ = evaluate.rows_of(closed, estimated, "watts")
    residual = np.asarray(np.round(np.log(rows.target / rows.estimate), 6), dtype=np.float64)
    boosters = [baselines.fit_trees(rows.scaled, residual, seed=seed + number) for number in range(baselines.BOOSTERS)]
    return Payload(
        factors=factors.NAMES,
        factor_low=tuple(map(float, rows.scaled.min(axis=0))),
        factor_high=tuple(map(float, rows.scaled.max(axis=0))),
        residual_low=float(residual.min()),
        residual_high=float(residual.max()),
        half_width_log=_half_widths(results),
        reference_watts=estimate.reference_watts(),
        models=tuple(sorted({part.points.profile.model for part in estimated})),
        boosters=tuple(booster.model_to_string() for booster in boosters),
        card=_card(closed, results, seed=seed),
    )


def train(
    folder: Path, *, own: Sequence[Path] = (), seed: int = 0, report: Callable[[str], None] = lambda _: None
) -> tuple[Payload, list[SplitResult]]:
    """Load, evaluate, fit. `own` are files of a user's steady runs (`energy.own_rows`), which join the public ones.

    Raises DataFileError: a data file is missing or not the expected one. RefusedRowsError: impossible own rows.
    """
    report("loading measured runs")
    closed, open_ = data.load_ml_energy(folder), data.load_nlr(folder)
    for path in own:
        closed = joined(closed, path)
        report(f"with {path}: {len(closed)} runs")
    results = evaluate.evaluate_all(closed, open_, seed=seed, report=report)
    report("fitting on all closed-loop runs")
    return fit(closed, results, seed=seed), results


def joined(closed: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Public runs and a user's own ones, whose measured batch stands where no closed loop held it.

    Raises DataFileError: no file of runs, or only the node's power was measured. RefusedRowsError: impossible rows.
    """
    rows = own_rows.read(path)
    if rows["gpu_watts"].isna().any():
        raise DataFileError(f"{path}: watts of GPUs are learned; rows with node_watts alone must be left out")
    rows["max_num_seqs"] = rows["max_num_seqs"].fillna(rows["batch"])
    return pd.concat([closed, rows], ignore_index=True)


def _half_widths(results: list[SplitResult]) -> dict[str, float]:
    watts = {result.split: result for result in results if result.target == "watts"}
    return {
        "known_model": round(watts["unseen curve"].half_width_log["hybrid"], 4),
        "new_model": round(watts["unseen backbone"].half_width_log["hybrid"], 4),
        "physics": round(watts["unseen backbone"].half_width_log["physics"], 4),
    }


def _card(closed: pd.DataFrame, results: list[SplitResult], *, seed: int) -> dict[str, Any]:
    own = int((closed["source"] != data.ML_ENERGY_V3.name).sum())
    return {
        "title": "Watts per busy GPU of vLLM serving: physical estimate x exp(LightGBM residual)",
        "target": "ln(measured / estimated watts per GPU)",
        "trained_on": {
            "rows": len(closed),
            "models": int(closed["model"].nunique()),
            "gpus": sorted(set(closed["gpu"])),
            **({"own_rows": own} if own else {}),
        },
        "data": [data.ML_ENERGY_V3.provenance(), data.NLR_H100.provenance()],
        "split": "grouped cross-validation, groups never split; 90 % group-bootstrap intervals",
        "method": {
            "objective": "absolute loss",
            "trees": baselines.TREES,
            "leaves": baselines.LEAVES,
            "learning_rate": baselines.LEARNING_RATE,
            "boosters": baselines.BOOSTERS,
            "seed": seed,
        },
        "score": "100 - MAPE in percent, on held-out groups",
        "results": [result.to_dict() for result in results],
        "licence": "Apache-2.0; learned numbers only, no measured row is in the file",
        "limits": list(LIMITS),
    }


def write(payload: Payload, path: Path) -> None:
    """Write the model file, and its card beside it as MODEL_CARD.md."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(artefact.dump(payload), encoding="utf-8")
    path.with_name("MODEL_CARD.md").write_text(card_markdown(payload), encoding="utf-8")


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
    widths = payload.half_width_log
    lines += ["", "90 % half-widths of the shipped intervals: " + ", ".join(
        f"{name.replace('_', ' ')} {np.expm1(width):.0%}" for name, width in widths.items()) + "."]  # fmt: skip
    lines += ["", "## Factors", "", "| factor | dimension | unit | known | what |", "|---|---|---|---|---|"]
    lines += [
        f"| {f.name} | {f.dimension.value} | {f.unit} | {f.known.value} | {f.description} |" for f in factors.FACTORS
    ]
    lines += [
        f"| {f.name} | {f.dimension.value} | {f.unit} | not learned | {f.reason} |" for f in factors.UNLEARNED_FACTORS
    ]
    lines += ["", "## Limits", "", *(f"- {limit}" for limit in card["limits"]), "", f"Licence: {card['licence']}.", ""]
    return "\n".join(lines)


def table_markdown(results: list[dict[str, Any]]) -> list[str]:
    """The error table as Markdown lines."""
    methods = list(results[0]["scores"])
    lines = ["| data | target | held out | runs | " + " | ".join(methods) + " | coverage |"]
    lines.append("|---" * (len(methods) + 5) + "|")
    for result in results:
        scores = [f"{s['value']:.1f} ({s['low']:.1f} to {s['high']:.1f})" for s in result["scores"].values()]
        target = "W per GPU" if result["target"] == "watts" else "J/token"
        cells = [result["data"], target, f"{result['split']} ({result['groups']})", str(result["rows"]), *scores]
        lines.append("| " + " | ".join([*cells, f"{result['coverage']['hybrid']:.0%}"]) + " |")
    return lines
