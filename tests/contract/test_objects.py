"""Objects: create, read, replace, delete; names, versions, generations, selectors, leases, events."""

import datetime as dt

import pytest
from kubernetes import client

from tests.contract.conftest import Api, absent, deployment, eventually, refused, widget


def configmap(name: str, **data: str) -> dict:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def test_created_object_gets_identity(api: Api, namespace: str) -> None:
    core = client.CoreV1Api(api.client)
    made = core.create_namespaced_config_map(namespace, configmap("a", x="1"))
    assert made.metadata.uid
    assert made.metadata.resource_version
    assert made.metadata.namespace == namespace
    assert abs((dt.datetime.now(tz=dt.UTC) - made.metadata.creation_timestamp).total_seconds()) < 30
    read = core.read_namespaced_config_map("a", namespace)
    assert read.to_dict() == made.to_dict()


def test_name_is_taken_missing_or_malformed(api: Api, namespace: str) -> None:
    core = client.CoreV1Api(api.client)
    core.create_namespaced_config_map(namespace, configmap("a"))
    with refused(409, "AlreadyExists", 'configmaps "a" already exists'):
        core.create_namespaced_config_map(namespace, configmap("a"))
    with refused(422, "Invalid", "metadata.name", "name or generateName is required"):
        core.create_namespaced_config_map(namespace, {"metadata": {}})
    with refused(422, "Invalid", "lowercase RFC 1123 subdomain"):
        core.create_namespaced_config_map(namespace, configmap("Not_Allowed"))
    with refused(404, "NotFound", 'configmaps "b" not found'):
        core.read_namespaced_config_map("b", namespace)


def test_generate_name(api: Api, namespace: str) -> None:
    core = client.CoreV1Api(api.client)
    names = {
        core.create_namespaced_config_map(namespace, {"metadata": {"generateName": "made-"}}).metadata.name
        for _ in range(3)
    }
    assert len(names) == 3
    assert all(name.startswith("made-") and len(name) == 10 for name in names)


def test_namespace_must_exist_and_match(api: Api, namespace: str) -> None:
    core = client.CoreV1Api(api.client)
    with refused(404, "NotFound", 'namespaces "nowhere-at-all" not found'):
        core.create_namespaced_config_map("nowhere-at-all", configmap("a"))
    with refused(400, "BadRequest", "does not match the namespace"):
        core.create_namespaced_config_map(namespace, {"metadata": {"name": "a", "namespace": "other"}})


def test_unknown_resource_is_not_found(api: Api, namespace: str) -> None:
    assert absent(lambda: api.request("GET", "/apis/unheard.of/v1/things"))
    assert absent(lambda: api.request("GET", "/apis/unheard.of/v1"))


def test_body_of_another_type_is_refused(api: Api, namespace: str) -> None:
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    with refused(400, "BadRequest"):
        api.request("POST", path, {"apiVersion": "v2", "kind": "ConfigMap", "metadata": {"name": "a"}})


def test_replace_with_an_old_version_conflicts(api: Api, namespace: str) -> None:
    core = client.CoreV1Api(api.client)
    made = api.request("POST", f"/api/v1/namespaces/{namespace}/configmaps", configmap("a", x="1"))
    first = core.replace_namespaced_config_map("a", namespace, {**made, "data": {"x": "2"}})
    assert first.metadata.resource_version != made["metadata"]["resourceVersion"]
    with refused(409, "Conflict", "the object has been modified"):
        core.replace_namespaced_config_map("a", namespace, {**made, "data": {"x": "3"}})
    again = core.replace_namespaced_config_map("a", namespace, configmap("a", x="4"))
    assert again.data == {"x": "4"}
    assert again.metadata.uid == made["metadata"]["uid"]


def test_custom_object_is_replaced_only_with_a_version(api: Api, widgets: str) -> None:
    made = api.request("POST", widgets, widget("a"))
    with refused(422, "Invalid", "metadata.resourceVersion", "must be specified for an update"):
        api.request("PUT", f"{widgets}/a", widget("a"))
    made["spec"]["replicas"] = 3
    replaced = api.request("PUT", f"{widgets}/a", made)
    assert replaced["metadata"]["generation"] == 2


def test_write_without_change_keeps_the_version(api: Api, widgets: str) -> None:
    made = api.request("POST", widgets, widget("a"), query={"fieldManager": "tests"})
    same = api.merge(f"{widgets}/a", {"spec": {"replicas": 1}})
    assert same["metadata"]["resourceVersion"] == made["metadata"]["resourceVersion"]
    assert same == made


def test_generation_counts_changes_of_intent(api: Api, widgets: str) -> None:
    assert api.request("POST", widgets, widget("a"))["metadata"]["generation"] == 1
    assert api.merge(f"{widgets}/a", {"metadata": {"labels": {"a": "b"}}})["metadata"]["generation"] == 1
    assert api.merge(f"{widgets}/a", {"spec": {"replicas": 2}})["metadata"]["generation"] == 2
    assert api.merge(f"{widgets}/a/status", {"status": {"phase": "X"}})["metadata"]["generation"] == 2


def test_dry_run_changes_nothing(api: Api, widgets: str) -> None:
    dry = {"dryRun": "All"}
    assert api.request("POST", widgets, widget("a"), query=dry)["spec"]["replicas"] == 1
    assert absent(lambda: api.request("GET", f"{widgets}/a"))
    api.request("POST", widgets, widget("a"))
    api.request("DELETE", f"{widgets}/a", query=dry)
    assert api.request("GET", f"{widgets}/a")["spec"]["replicas"] == 1


def test_delete_answers_and_preconditions(api: Api, widgets: str) -> None:
    made = api.request("POST", widgets, widget("a"))
    with refused(409, "Conflict"):
        api.request("DELETE", f"{widgets}/a", {"preconditions": {"uid": "another"}})
    answer = api.request("DELETE", f"{widgets}/a", {"preconditions": {"uid": made["metadata"]["uid"]}})
    assert (answer["kind"], answer["status"]) == ("Status", "Success")
    assert answer["details"]["name"] == "a"
    with refused(404, "NotFound", f'"{made["metadata"]["name"]}" not found'):
        api.request("DELETE", f"{widgets}/a")


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ("tier=a", {"one"}),
        ("tier==a,color", {"one"}),
        ("tier!=a", {"two", "three"}),
        ("tier in (a, b)", {"one", "two"}),
        ("tier notin (a,b)", {"three"}),
        ("!tier", {"three"}),
        ("color in (red),tier", {"one"}),
    ],
)
def test_label_selectors(api: Api, widgets: str, selector: str, expected: set[str]) -> None:
    for name, labels in (("one", {"tier": "a", "color": "red"}), ("two", {"tier": "b"}), ("three", {})):
        body = widget(name)
        body["metadata"]["labels"] = labels
        api.request("POST", widgets, body)
    found = api.request("GET", widgets, query={"labelSelector": selector})
    assert {item["metadata"]["name"] for item in found["items"]} == expected


def test_field_selectors_and_lists(api: Api, namespace: str, widgets: str) -> None:
    for name in ("b", "a"):
        api.request("POST", widgets, widget(name))
    found = api.request("GET", widgets, query={"fieldSelector": "metadata.name=a", "limit": "500"})
    assert [item["metadata"]["name"] for item in found["items"]] == ["a"]
    assert found["kind"] == "WidgetList"
    everything = api.request("GET", widgets)
    assert [item["metadata"]["name"] for item in everything["items"]] == ["a", "b"]
    elsewhere = api.request("GET", widgets.replace(namespace, "default"))
    assert elsewhere["items"] == []
    with refused(400, "BadRequest", "field label not supported"):
        api.request("GET", widgets, query={"fieldSelector": "spec.unknown=a"})


def test_pods_are_selected_by_node(api: Api, namespace: str) -> None:
    core = client.CoreV1Api(api.client)
    spec = {"containers": [{"name": "c", "image": "i"}], "automountServiceAccountToken": False}
    eventually(
        lambda: api.name == "embedded" or not absent(lambda: core.read_namespaced_service_account("default", namespace))
    )
    core.create_namespaced_pod(namespace, {"metadata": {"name": "p"}, "spec": {**spec, "nodeName": "node-x"}})
    core.create_namespaced_pod(namespace, {"metadata": {"name": "q"}, "spec": {**spec, "schedulerName": "nobody"}})
    found = core.list_namespaced_pod(namespace, field_selector="spec.nodeName=node-x")
    assert [pod.metadata.name for pod in found.items] == ["p"]
    assert found.items[0].status.phase == "Pending"
    waiting = core.list_namespaced_pod(namespace, field_selector="spec.nodeName=,status.phase=Pending")
    assert [pod.metadata.name for pod in waiting.items] == ["q"]
    for name in ("p", "q"):
        core.delete_namespaced_pod(name, namespace, grace_period_seconds=0)


def test_lease_is_taken_by_one(api: Api, namespace: str) -> None:
    path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
    stamp = "2026-01-01T00:00:00.000000Z"
    spec = {"holderIdentity": "one", "leaseDurationSeconds": 15, "acquireTime": stamp, "renewTime": stamp}
    body = {"metadata": {"name": "leader"}, "spec": spec}
    seen = api.request("POST", path, body)
    with refused(409, "AlreadyExists"):
        api.request("POST", path, body)
    taken = {**seen, "spec": {**spec, "holderIdentity": "two"}}
    assert api.request("PUT", f"{path}/leader", taken)["spec"]["holderIdentity"] == "two"
    with refused(409, "Conflict"):
        api.request("PUT", f"{path}/leader", {**seen, "spec": {**spec, "holderIdentity": "three"}})


@pytest.mark.parametrize("stamp", ["2026-01-01T00:00:00Z", "2026-01-01T00:00:00+00:00", "yesterday"])
def test_lease_times_need_microseconds(api: Api, namespace: str, stamp: str) -> None:
    path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
    with refused(400, "BadRequest", 'Lease in version "v1" cannot be handled as a Lease'):
        api.request("POST", path, {"metadata": {"name": "leader"}, "spec": {"renewTime": stamp}})


def test_events_of_both_groups_are_one(api: Api, namespace: str) -> None:
    about = {"kind": "Widget", "name": "a", "namespace": namespace, "apiVersion": "v1"}
    core = client.CoreV1Api(api.client)
    core.create_namespaced_event(
        namespace,
        {
            "metadata": {"generateName": "e-"},
            "involvedObject": about,
            "type": "Normal",
            "reason": "Tested",
            "message": "seen",
            "source": {"component": "tests"},
            "firstTimestamp": "2026-01-01T00:00:00Z",
            "lastTimestamp": "2026-01-01T00:00:00Z",
            "count": 1,
        },
    )
    found = api.request("GET", f"/apis/events.k8s.io/v1/namespaces/{namespace}/events")["items"]
    assert [(event["note"], event["regarding"]["name"], event["deprecatedCount"]) for event in found] == [
        ("seen", "a", 1)
    ]
    assert found[0]["eventTime"] is None
    selected = core.list_namespaced_event(namespace, field_selector="involvedObject.name=a,type=Normal")
    assert [event.message for event in selected.items] == ["seen"]


def test_deployment_is_defaulted_and_checked(api: Api, deployments: str) -> None:
    made = api.request("POST", deployments, deployment("chat", replicas=None))
    spec = made["spec"]
    assert spec["replicas"] == 1
    assert spec["strategy"] == {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"},
    }
    assert (spec["revisionHistoryLimit"], spec["progressDeadlineSeconds"]) == (10, 600)
    pod = spec["template"]["spec"]
    assert (pod["restartPolicy"], pod["terminationGracePeriodSeconds"]) == ("Always", 30)
    container = pod["containers"][0]
    assert container["imagePullPolicy"] == "IfNotPresent"
    assert container["ports"] == [{"containerPort": 8000, "protocol": "TCP"}]
    bad = deployment("other")
    bad["spec"]["template"]["metadata"]["labels"] = {"app": "else"}
    with refused(422, "Invalid", "spec.template.metadata.labels", "`selector` does not match template `labels`"):
        api.request("POST", deployments, bad)
    with refused(422, "Invalid", "field is immutable"):
        api.merge(
            f"{deployments}/chat",
            {
                "spec": {
                    "selector": {"matchLabels": {"app": "new"}},
                    "template": {"metadata": {"labels": {"app": "new"}}},
                }
            },
        )


def test_secret_text_is_encoded(api: Api, namespace: str) -> None:
    core = client.CoreV1Api(api.client)
    made = core.create_namespaced_secret(namespace, {"metadata": {"name": "s"}, "stringData": {"key": "text"}})
    assert (made.data, made.type, made.string_data) == ({"key": "dGV4dA=="}, "Opaque", None)


def test_autoscaler_is_served(api: Api, namespace: str) -> None:
    scalers = client.AutoscalingV2Api(api.client)
    body = {
        "metadata": {"name": "h"},
        "spec": {"scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "chat"}, "maxReplicas": 3},
    }
    assert scalers.create_namespaced_horizontal_pod_autoscaler(namespace, body).spec.min_replicas == 1
    found = scalers.list_namespaced_horizontal_pod_autoscaler(namespace)
    assert [item.spec.scale_target_ref.name for item in found.items] == ["chat"]


def test_versions_and_discovery(api: Api) -> None:
    assert client.VersionApi(api.client).get_code().major == "1"
    groups = {group.name for group in client.ApisApi(api.client).get_api_versions().groups}
    assert {"apps", "autoscaling", "coordination.k8s.io", "events.k8s.io", "apiextensions.k8s.io"} <= groups
    found = api.request("GET", "/apis/contract.wattkeeper.io/v1")
    names = {item["name"]: item for item in found["resources"]}
    assert set(names) == {"widgets", "widgets/status", "widgets/scale"}
    assert names["widgets"]["shortNames"] == ["widx"]
    assert {"get", "list", "watch", "create", "update", "patch", "delete"} <= set(names["widgets"]["verbs"])
