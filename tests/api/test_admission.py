"""What the real API server says of a wrong spec: refused before the operator sees it, in words people understand."""

import copy
import pathlib

import pytest

from e2e.cluster.base import CommandError

pytestmark = pytest.mark.cluster
CRDS = pathlib.Path(__file__).parents[2] / "crds"
GOOD = {
    "apiVersion": "wattkeeper.io/v1alpha1",
    "kind": "InferenceService",
    "metadata": {"name": "chat"},
    "spec": {"model": "m", "targetRef": {"name": "chat"}, "slo": {"ttft": {"target": "500ms"}}},
}
WRONG = [
    ({"slo": {}}, "an SLO needs ttft, tpot or both"),
    (
        {"slo": {"ttft": {"target": "5 sec"}}},
        'slo.ttft.target: Invalid value: "5 sec": not a duration: write for example',
    ),
    ({"slo": {"ttft": {"target": "0ms"}}}, "target must be above 0"),
    ({"slo": {"ttft": {"target": "1s", "percentile": 20}}}, "should be greater than or equal to 50"),
    ({"levers": {"replicas": {"min": 3, "max": 2}}}, "levers.replicas: min must not exceed max"),
    ({"levers": {"powerCap": {"min": "700W", "max": "300W"}}}, "levers.powerCap: min must not exceed max"),
    ({"levers": {"powerCap": {"min": "30W", "max": "300W"}}}, "min is below 50W"),
    ({"levers": {"powerCap": {"min": "300W", "max": "2000W"}}}, "max is above 1500W per GPU"),
    ({"levers": {"powerCap": {"min": "300", "max": "400W"}}}, "write whole watts, for example 350W"),
    ({"levers": {"clockLock": {"min": "2GHz", "max": "1980MHz"}}}, "write whole megahertz, for example 1980MHz"),
    ({"levers": {"clockLock": {"min": "1900MHz", "max": "900MHz"}}}, "levers.clockLock: min must not exceed max"),
    ({"levers": {"engine": {"kvCacheMemory": ["20 GB"]}}}, "write for example 20Gi or 500M"),
    ({"levers": {"engine": {"gpuMemoryUtilization": [0]}}}, "should be greater than 0"),
    ({"levers": {"engine": {"maxNumBatchedTokens": [512], "maxNumSeqs": [1024]}}}, "vLLM does not start where"),
    ({"mode": "Yolo"}, 'supported values: "Observe", "Recommend", "Enforce"'),
    ({"targetRef": None}, "spec.targetRef"),
    ({"targetRef": {"kind": "DaemonSet", "name": "chat"}}, 'supported values: "Deployment", "StatefulSet"'),
    ({"replicas": 0}, "should be greater than or equal to 1"),
]


@pytest.fixture(scope="module")
def cluster(control_plane):
    control_plane.apply_crds(CRDS)
    return control_plane


def test_a_minimal_spec_is_taken(cluster, namespace):
    assert "created" in cluster.apply(GOOD, namespace=namespace)


@pytest.mark.parametrize(("change", "said"), WRONG, ids=[said[:40] for _, said in WRONG])
def test_a_wrong_spec_is_refused_with_a_sentence(cluster, namespace, change, said):
    body = copy.deepcopy(GOOD)
    body["spec"] = {name: value for name, value in {**body["spec"], **change}.items() if value is not None}
    with pytest.raises(CommandError) as refused:
        cluster.apply(body, namespace=namespace)
    assert said in str(refused.value)
