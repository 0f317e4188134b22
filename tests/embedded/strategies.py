"""JSON values as Kubernetes objects hold them."""

from typing import Any

from hypothesis import strategies as st

KEYS = st.sampled_from(["a", "b", "c", "d/e", "f~g"])
SCALARS = st.one_of(st.booleans(), st.integers(-3, 3), st.sampled_from(["", "x", "y"]))
VALUES: st.SearchStrategy[Any] = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=3)),
    max_leaves=12,
)
MAPS: st.SearchStrategy[dict[str, Any]] = st.dictionaries(KEYS, VALUES, max_size=4)

PORT_NAMES = st.sampled_from(["p", "q", "r"])
PORTS = st.lists(
    st.fixed_dictionaries({"name": PORT_NAMES}, optional={"number": st.integers(0, 2)}),
    max_size=3,
    unique_by=lambda item: item["name"],
)
SPECS: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {},
    optional={
        "replicas": st.integers(0, 2),
        "mode": st.sampled_from(["A", "B"]),
        "args": st.lists(st.sampled_from(["x", "y"]), max_size=2),
        "labels": st.dictionaries(st.sampled_from(["k", "l"]), st.sampled_from(["1", "2"]), max_size=2),
        "members": st.lists(st.sampled_from(["m", "n"]), max_size=2, unique=True),
        "ports": PORTS,
    },
)
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "spec": {
            "type": "object",
            "properties": {
                "replicas": {"type": "integer"},
                "mode": {"type": "string"},
                "args": {"type": "array", "items": {"type": "string"}},
                "labels": {"type": "object", "additionalProperties": {"type": "string"}},
                "members": {"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "set"},
                "ports": {
                    "type": "array",
                    "x-kubernetes-list-type": "map",
                    "x-kubernetes-list-map-keys": ["name"],
                    "items": {
                        "type": "object",
                        "properties": {"name": {"type": "string"}, "number": {"type": "integer"}},
                    },
                },
            },
        }
    },
}
