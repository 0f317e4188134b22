"""The learnt correction: monotone, wide where it knows nothing, and refused where its file is not what it should be."""

import gzip
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wattkeeper.domain.errors import ModelFileError
from wattkeeper.queueing import correction, features
from wattkeeper.queueing.correction import Correction
from wattkeeper.queueing.features import Tables

SHIPPED = json.loads(gzip.decompress(correction.shipped_path().read_bytes()))
PARTS = {"ttft": features.TTFT, "tpot": features.TPOT}


def rows(name, seed, count=1):
    """Random columns within the trained range."""
    part = SHIPPED["payload"][name]
    rng = np.random.default_rng(seed)
    return rng.uniform(part["low"], part["high"], (count, len(part["low"])))


def tables(ttft, tpot):
    ones = np.ones(len(ttft))
    return Tables(ttft=ttft, tpot=tpot, lone_ttft_seconds=ones, lone_tpot_seconds=ones)


@pytest.mark.parametrize("name", PARTS)
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), column=st.integers(0, 99))
def test_hardship_never_shortens_a_latency(name, seed, column):
    signs = [(at, sign) for at, sign in enumerate(PARTS[name].values()) if sign]
    at, sign = signs[column % len(signs)]
    part = SHIPPED["payload"][name]
    table = np.repeat(rows(name, seed), 8, axis=0)
    table[:, at] = np.linspace(part["low"][at], part["high"][at], 8)[::sign]
    other = {key: rows(key, seed, 8) for key in PARTS} | {name: table}
    found = correction.shipped().apply(tables(**other))
    for kind in ("seconds", "upper_seconds"):
        latency = getattr(found, f"{name}_{kind}")
        # The bound that was widened for the other latency's columns may differ from row to row.
        if kind == "upper_seconds":
            latency = latency / (1.0 + found.widening)
        assert np.all(np.diff(latency) >= -1e-9 * latency[:-1])


@given(seed=st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_bounds_lie_above_and_widen_outside_the_trained_range(seed):
    inside = {name: rows(name, seed, 4) for name in PARTS}
    found = correction.shipped().apply(tables(**inside))
    assert np.all(found.widening == 0.0)
    assert np.all(found.ttft_upper_seconds >= found.ttft_seconds)
    assert np.all(found.tpot_upper_seconds >= found.tpot_seconds)
    at = list(features.TTFT).index("slots")
    inside["ttft"][:, at] = SHIPPED["payload"]["ttft"]["high"][at] + 3.0
    outside = correction.shipped().apply(tables(**inside))
    assert np.all(outside.widening > 0.1)
    assert np.all(outside.ttft_upper_seconds > found.ttft_upper_seconds)


def write(path, change):
    document = json.loads(json.dumps(SHIPPED))
    change(document)
    path.write_bytes(gzip.compress(json.dumps(document).encode()))
    return path


def test_the_shipped_file_says_what_it_was_made_of():
    card = correction.shipped().card
    assert card["runs"] >= 1000
    assert card["preempting_runs"] > 0
    assert {"poisson", "batches", "wandering"} <= card["arrivals"].keys()
    assert {score["kind"] for score in card["errors"]} == card["arrivals"].keys()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: found["payload"]["ttft"].update(slope=0.5), "was altered"),
        (lambda found: found.update(format="something"), "is no wattkeeper-latency-model file"),
        (lambda found: found.update(format_version=99), "has format 99"),
    ],
)
def test_foreign_and_altered_files_are_refused(tmp_path, change, message):
    with pytest.raises(ModelFileError, match=message):
        Correction.load(write(tmp_path / "model.json.gz", change))


def test_files_that_are_no_files_are_refused(tmp_path):
    with pytest.raises(ModelFileError, match="cannot be read"):
        Correction.load(tmp_path / "missing.json.gz")
    cut = tmp_path / "cut.json.gz"
    cut.write_bytes(correction.shipped_path().read_bytes()[:5000])
    with pytest.raises(ModelFileError, match="truncated"):
        Correction.load(cut)


def test_files_for_other_columns_are_refused(tmp_path):
    payload = correction.Payload(
        ttft=correction._part(SHIPPED["payload"]["ttft"]), tpot=correction._part(SHIPPED["payload"]["tpot"]), card={}
    )
    path = tmp_path / "model.json.gz"
    correction.write(payload, path)
    assert Correction.load(path).version.startswith("latency-v1-")
    columns = ("other", *payload.ttft.columns[1:])
    correction.write(replace(payload, ttft=replace(payload.ttft, columns=columns)), path)
    with pytest.raises(ModelFileError, match="other columns"):
        Correction.load(path)
    correction.write(replace(payload, ttft=replace(payload.ttft, slope=float("nan"))), path)
    with pytest.raises(ModelFileError, match="incomplete"):
        Correction.load(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text[:5000], "trees that are no text of LightGBM's, or are cut short: use the file that ships"),
        (lambda text: text.replace("max_feature_idx=35", "max_feature_idx=40"), "another number of columns than 36"),
    ],
)
def test_trees_that_cannot_be_evaluated_are_refused_when_loaded(tmp_path, change, said):
    payload, _ = correction.read(correction.shipped_path())
    path = tmp_path / "model.json.gz"
    correction.write(replace(payload, tpot=replace(payload.tpot, spread=change(payload.tpot.spread))), path)
    with pytest.raises(ModelFileError, match=said):
        Correction.load(path)
