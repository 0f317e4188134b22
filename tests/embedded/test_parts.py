"""Selectors, JSONPath, ages, quantities, protobuf bodies, Accept headers."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattkeeper.embedded import jsonpath, negotiation, protobuf, quantity, selectors, tables
from wattkeeper.embedded.cluster import portion
from wattkeeper.embedded.crds import version_order
from wattkeeper.embedded.errors import ApiError


def labelled(**labels: str) -> dict[str, Any]:
    return {"metadata": {"name": "x", "labels": labels}}


@given(st.text(max_size=20))
def test_label_selector_parses_or_is_refused(text: str) -> None:
    try:
        test = selectors.labels(text)
    except ApiError as error:
        assert error.code == 400
    else:
        assert test(labelled(a="b")) in (True, False)


@given(st.text(max_size=20))
def test_field_selector_parses_or_is_refused(text: str) -> None:
    try:
        test = selectors.fields(text)
    except ApiError as error:
        assert error.code == 400
    else:
        assert test(labelled()) in (True, False)


def test_label_selectors_compare_numbers_and_sets() -> None:
    assert selectors.labels("n>3,n<10")(labelled(n="5"))
    assert not selectors.labels("n>3")(labelled(n="x"))
    assert selectors.labels("example.com/a in (b,c),!d")(labelled(**{"example.com/a": "c"}))
    assert selectors.labels("a notin (b)")(labelled())


@pytest.mark.parametrize(
    ("operator", "values", "expected"),
    [
        ("In", ["x"], True),
        ("In", ["y"], False),
        ("NotIn", ["y"], True),
        ("Exists", [], True),
        ("DoesNotExist", [], False),
        ("Near", [], False),
    ],
)
def test_selector_objects(operator: str, values: list[str], expected: bool) -> None:
    selector = {"matchLabels": {"b": "z"}, "matchExpressions": [{"key": "a", "operator": operator, "values": values}]}
    assert selectors.matches(selector, {"a": "x", "b": "z"}) is expected
    assert not selectors.matches(None, {"a": "x"})


def test_selector_object_as_text_means_the_same() -> None:
    selector = {
        "matchLabels": {"b": "z"},
        "matchExpressions": [
            {"key": "a", "operator": "In", "values": ["x", "y"]},
            {"key": "c", "operator": "DoesNotExist"},
            {"key": "b", "operator": "Exists"},
        ],
    }
    test = selectors.labels(selectors.selector_text(selector))
    for labels in ({"a": "x", "b": "z"}, {"a": "x", "b": "z", "c": "d"}, {"b": "z"}, {"a": "q", "b": "z"}):
        assert test(labelled(**labels)) == selectors.matches(selector, labels)


OBJECT = {
    "metadata": {"annotations": {"example.com/key": "v"}},
    "spec": {"list": [{"type": "A", "n": 1, "on": True}, {"type": "B", "n": 2}], "map": {"x": 1, "y": 2}},
}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (".spec.list[0].n", [1]),
        (".spec.list[-1].n", [2]),
        (".spec.list[*].n", [1, 2]),
        ('.spec.list[?(@.type=="B")].n', [2]),
        (".spec.list[?(@.type!='B')].n", [1]),
        (".spec.list[?(@.on==true)].n", [1]),
        (".metadata.annotations.example\\.com/key", ["v"]),
        (".metadata.annotations['example.com/key']", ["v"]),
        ("{.spec.map.x}", [1]),
        ("spec.map.*", [1, 2]),
        (".spec.nothing.here", []),
        (".spec.list[9]", []),
    ],
)
def test_json_path(path: str, expected: list[Any]) -> None:
    assert jsonpath.find(OBJECT, path) == expected


def test_json_path_that_is_not_understood() -> None:
    with pytest.raises(ValueError, match="is not understood"):
        jsonpath.find(OBJECT, ".spec[1:2]")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "<invalid>"),
        (0, "0s"),
        (119, "119s"),
        (120, "2m"),
        (150, "2m30s"),
        (900, "15m"),
        (3 * 3600, "3h"),
        (5 * 3600 + 1800, "5h30m"),
        (20 * 3600, "20h"),
        (3 * 86400 + 7200, "3d2h"),
        (100 * 86400, "100d"),
        (800 * 86400, "2y70d"),
    ],
)
def test_ages(seconds: float, text: str) -> None:
    assert tables.duration(seconds) == text


@pytest.mark.parametrize(
    ("text", "value"), [("8", 8.0), ("500m", 0.5), ("2Gi", 2.0 * 2**30), ("1e3", 1000.0), ("3k", 3000.0), (4, 4.0)]
)
def test_quantities(text: str | int, value: float) -> None:
    assert quantity.parse(text) == pytest.approx(value)


def test_bad_quantity() -> None:
    with pytest.raises(ValueError, match="is no quantity"):
        quantity.parse("lots")


@given(st.integers(0, 100), st.integers(0, 50))
def test_portions_round_as_asked(percent: int, total: int) -> None:
    low, high = portion(f"{percent}%", total, up=False), portion(f"{percent}%", total, up=True)
    assert low <= percent * total / 100 <= high
    assert high - low <= 1


def test_version_order() -> None:
    found = sorted(["v1alpha1", "v2", "foo", "v1", "v1beta2", "v1beta1", "v10"], key=version_order)
    assert found == ["v10", "v2", "v1", "v1beta2", "v1beta1", "v1alpha1", "foo"]


def field(number: int, value: bytes) -> bytes:
    return bytes([number << 3 | 2, len(value)]) + value


ENVELOPE = field(1, field(1, b"v1") + field(2, b"ConfigMap"))


def test_protobuf_of_a_config_map() -> None:
    meta = field(1, b"name") + field(11, field(1, b"k") + field(2, b"v"))
    raw = field(1, meta) + field(2, field(1, b"a") + field(2, b"b")) + field(3, field(1, b"c") + field(2, b"\xff"))
    assert protobuf.decode(b"k8s\x00" + ENVELOPE + field(2, raw + b"\x20\x01")) == {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "name", "labels": {"k": "v"}},
        "data": {"a": "b"},
        "binaryData": {"c": "/w=="},
        "immutable": True,
    }


@given(st.binary(max_size=40))
def test_protobuf_nonsense_is_refused(data: bytes) -> None:
    for body in (data, b"k8s\x00" + data, b"k8s\x00" + ENVELOPE + field(2, data)):
        try:
            assert protobuf.decode(body)["kind"] == "ConfigMap"
        except ApiError as error:
            assert error.code in (400, 415)


def test_protobuf_of_other_kinds_gives_advice() -> None:
    with pytest.raises(ApiError, match="kubectl apply -f"):
        protobuf.decode(b"k8s\x00" + field(1, field(1, b"v1") + field(2, b"Pod")))


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("application/json", ""),
        ("", ""),
        ("application/json;as=Table;v=v1;g=meta.k8s.io,application/json", "Table"),
        ("application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json", ""),
        ("application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1", "PartialObjectMetadata"),
        ("application/vnd.kubernetes.protobuf,application/json", ""),
    ],
)
def test_accept_headers(accept: str, kind: str) -> None:
    assert negotiation.form(accept, {}).kind == kind
