import json

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from wattkeeper.evaluation import measured_result
from wattkeeper.evaluation.measured_result import Evaluation, Score


def evaluation() -> Evaluation:
    frames = [
        measured_result.rows_of(
            split="unseen rates",
            method=method,
            target="ttft",
            group=["a", "a", "b", "b"],
            x=np.array([1.0, 2.0, 1.0, 2.0]),
            measured=np.ones(4),
            predicted=np.array(predicted),
            parts={"gpu": ["x", "x", "y", "y"]},
        )
        for method, predicted in (("ours", [1.0, 1.05, 0.9, 1.3]), ("queue", [1.2, 1.2, np.nan, np.inf]))
    ]
    rows = pd.concat(frames, ignore_index=True)
    return Evaluation(
        name="test",
        title="Test",
        goal=0.1,
        targets=("ttft",),
        rows=rows,
        scores=measured_result.scores(rows, goal=0.1, seed=0, parts=("gpu",), split="unseen rates", method="ours"),
        notes=("A note.",),
        parameters={},
    )


def score(method: str, part: str = measured_result.ALL) -> Score:
    (found,) = [each for each in evaluation().scores if (each.method, each.part) == (method, part)]
    return found


def test_errors_are_relative_to_the_measurement() -> None:
    ours = score("ours")
    assert ours.median == pytest.approx(0.075)
    assert ours.within == 0.75
    assert ours.answered == 1.0
    assert ours.median_low <= ours.median <= ours.median_high


def test_no_answer_is_no_error_but_a_miss() -> None:
    queue = score("queue")
    assert queue.answered == 0.5
    assert queue.median == pytest.approx(0.2)
    assert queue.within == 0.0


def test_parts_are_those_of_the_chosen_method() -> None:
    assert score("ours", "gpu: x").rows == 2
    assert [each.part for each in evaluation().scores if each.method == "queue"] == [measured_result.ALL]


def test_table_and_json_say_the_same() -> None:
    console = Console(width=120, record=True)
    for table in evaluation().tables():
        console.print(table)
    text = console.export_text()
    assert "7.5 / 24 " in text
    assert "(75%)" in text
    assert "50% no answer" in text
    assert "gpu: y" in text
    found = json.loads(json.dumps(evaluation().to_dict()))
    assert found["scores"][0]["median"] == 0.075
    assert found["notes"] == ["A note."]
