import json

import pytest

from wattkeeper.actuators.scale import (
    REPLICAS,
    container_field,
    field_owner,
    field_owners,
    foreign_scaler,
    foreign_writer,
)

OURS = "wattkeeper"
TARGET = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "chat", "namespace": "team"}}


def hpa(name="chat", kind="Deployment", api="apps/v1", namespace="team", **metadata):
    return {
        "metadata": {"name": "h", "namespace": namespace, **metadata},
        "spec": {"scaleTargetRef": {"apiVersion": api, "kind": kind, "name": name}},
    }


def scaled_object(reference=None, **metadata):
    return {
        "metadata": {"name": "s", "namespace": "team", **metadata},
        "spec": {"scaleTargetRef": reference or {"name": "chat"}},
    }


def test_hpa_and_keda_are_found():
    conflict = foreign_scaler(TARGET, [hpa()], [])
    assert (conflict.reason, conflict.by) == ("TargetManagedByHPA", "HorizontalPodAutoscaler/h")
    assert "External" in conflict.message
    conflict = foreign_scaler(TARGET, [hpa()], [scaled_object()])
    assert (conflict.reason, conflict.by) == ("TargetManagedByKEDA", "ScaledObject/s")
    by_keda = hpa(ownerReferences=[{"kind": "ScaledObject", "name": "s", "controller": True}])
    assert foreign_scaler(TARGET, [by_keda], []).by == "ScaledObject/s"
    paused = scaled_object(annotations={"autoscaling.keda.sh/paused": "true"})
    assert "paused" in foreign_scaler(TARGET, [], [paused]).message


@pytest.mark.parametrize(
    "scaler",
    [
        hpa(name="other"),
        hpa(kind="StatefulSet"),
        hpa(api="argoproj.io/v1alpha1"),
        hpa(namespace="other"),
        hpa(deletionTimestamp="2026-01-01T00:00:00Z"),
        {"metadata": {"name": "h", "namespace": "team"}, "spec": {}},
    ],
)
def test_scalers_of_other_things_are_not(scaler):
    assert foreign_scaler(TARGET, [scaler], []) is None
    assert foreign_scaler(TARGET, [], [scaled_object({"kind": "StatefulSet", "name": "chat"})]) is None


def entry(manager, time, fields, operation="Update", subresource=""):
    made = {"manager": manager, "operation": operation, "time": time, "fieldsV1": fields}
    return made | ({"subresource": subresource} if subresource else {})


REPLICAS_FIELD = {"f:spec": {"f:replicas": {}}}
T1, T2, T3 = "2026-01-01T10:00:00Z", "2026-01-01T11:00:00Z", "2026-01-01T12:00:00Z"
SECONDS_2 = 1_767_265_200.0


def writer(fields, last_write_seconds=None, path=REPLICAS):
    return foreign_writer(fields, path, ours=OURS, last_write_seconds=last_write_seconds)


def test_creator_is_no_conflict():
    created = [entry("kubectl-client-side-apply", T1, REPLICAS_FIELD)]
    assert field_owner(created, REPLICAS) == "kubectl-client-side-apply"
    assert writer(created) is None
    assert writer([]) is None


def test_a_scaler_before_us_is_a_conflict_but_a_hand_is_not():
    assert writer([entry("kube-controller-manager", T1, REPLICAS_FIELD, subresource="scale")]).by == (
        "kube-controller-manager"
    )
    assert writer([entry("keda", T1, REPLICAS_FIELD, subresource="scale")]).reason == "FieldOwnedByOther"
    assert writer([entry("kubectl", T1, REPLICAS_FIELD, subresource="scale")]) is None


def test_after_us_everybody_counts():
    ours = entry(OURS, T2, {"f:spec": {}}, subresource="scale")
    taken = [ours, entry("kubectl", T3, REPLICAS_FIELD, subresource="scale")]
    assert writer(taken, SECONDS_2).by == "kubectl"
    assert "scale subresource" in writer(taken, SECONDS_2).message
    assert writer([entry("argocd", T1, REPLICAS_FIELD)], SECONDS_2) is None


def test_shared_and_own_fields():
    ours = entry(OURS, T2, REPLICAS_FIELD, "Apply")
    assert writer([ours]) is None
    assert writer([entry("argocd", T1, REPLICAS_FIELD, "Apply"), ours]) is None
    conflict = writer([ours, entry("argocd", T3, REPLICAS_FIELD, "Apply")])
    assert conflict.by == "argocd" and "spec.replicas" in conflict.message
    assert [owner.manager for owner in field_owners([entry("b", T3, REPLICAS_FIELD), ours], REPLICAS)] == [OURS, "b"]


def test_status_writes_do_not_count():
    assert field_owner([entry("x", T1, REPLICAS_FIELD, subresource="status")], REPLICAS) is None


def test_container_fields():
    key = 'k:{"name":"vllm"}'
    fields = {"f:spec": {"f:template": {"f:spec": {"f:containers": {key: {".": {}, "f:args": {}, "f:env": {}}}}}}}
    entries = [entry("helm", T1, fields), entry("x", "no time", {"f:spec": {"f:template": "odd"}})]
    assert field_owner(entries, container_field("vllm", "args")) == "helm"
    assert field_owner(entries, container_field("vllm", "command")) is None
    assert field_owner(entries, container_field("other", "args")) is None
    assert json.loads(container_field('a"b', "args")[4]) == {"name": 'a"b'}
    conflict = writer(entries, SECONDS_2 - 7200, container_field("vllm", "args"))
    assert "spec.template.spec.containers.args" in conflict.message
