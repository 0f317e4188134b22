"""Targets that are missing, claimed, owned or not readable: a condition says so, and nothing is patched."""

import copy

import pytest

from tests.controller.world import deployment, reading, service

HUNGRY = {
    "replicas": {"min": 1, "max": 6},
    "powerCap": {"min": "350W", "max": "700W"},
    "engine": {"maxNumSeqs": [64, 128]},
}


def untouched(before, after) -> bool:
    """Nothing that a user owns of a workload changed."""
    return before["spec"] == after["spec"] and before["metadata"].get("annotations") == after["metadata"].get(
        "annotations"
    )


def test_a_missing_target_is_named(world):
    world.add_node()
    world.create(service(world.namespace, target="nowhere"))
    world.tick(2)
    found = world.condition("TargetResolved")
    assert (found["status"], found["reason"]) == ("False", "TargetNotFound")
    assert found["message"] == f"there is no Deployment nowhere in namespace {world.namespace}"
    assert world.said("Ready") == ("False", "TargetNotFound")
    assert world.said("MetricsAvailable") == ("Unknown", "NotObserved")
    assert "replicas" not in world.status().get("plan", {})


def test_a_target_that_comes_back_is_taken_up(world):
    world.fleet(replicas=2, rate=1.0)
    world.create(service(world.namespace, levers={"powerCap": {"min": "350W", "max": "700W"}}))
    world.tick(2)
    assert world.caps()
    world.delete("deployments", "chat")
    world.tick()
    assert world.said("TargetResolved") == ("False", "TargetNotFound")
    assert world.caps() == []
    world.deploy(deployment(world.namespace, "chat", replicas=2, pool=world.node))
    world.report_agent()
    world.measure(rate=1.0)
    world.tick(2)
    assert world.said("TargetResolved") == ("True", "Found")


def test_a_container_that_is_not_there(world):
    world.fleet(replicas=2, rate=0.5)
    before = world.target()
    body = service(world.namespace, levers=HUNGRY)
    body["spec"]["targetRef"]["container"] = "server"
    world.create(body)
    world.tick(3)
    found = world.condition("TargetResolved")
    assert (found["status"], found["reason"]) == ("False", "ContainerNotFound")
    assert "server" in found["message"] and "vllm" in found["message"]
    assert untouched(before, world.target())
    assert world.caps() == []


def test_two_services_on_one_target_the_older_keeps_it(world):
    world.fleet(replicas=2, rate=1.0)
    world.create(service(world.namespace, "a-first"))
    world.tick()
    world.create(service(world.namespace, "b-second"))
    world.tick(2)
    assert world.said("TargetResolved", "a-first") == ("True", "Found")
    assert world.said("TargetResolved", "b-second") == ("False", "TargetClaimedTwice")
    assert "a-first" in world.condition("TargetResolved", "b-second")["message"]
    assert {entry["owner"] for entry in world.caps()} <= {f"{world.namespace}/a-first"}
    world.delete("inferenceservices", "a-first")
    world.tick(2)
    assert world.said("TargetResolved", "b-second") == ("True", "Found")


SHELL = {"command": ["sh", "-c", "exec vllm serve $(cat /etc/model) --max-num-seqs $SEQS"], "args": None}


def test_arguments_behind_a_shell_are_not_patched_and_the_rest_goes_on(world):
    body = deployment(world.namespace, "chat", replicas=2, pool=world.node)
    container = body["spec"]["template"]["spec"]["containers"][0]
    container.update({key: value for key, value in SHELL.items() if value is not None})
    del container["args"]
    world.add_node()
    world.deploy(body)
    world.report_agent()
    world.measure(rate=2.0)
    before = world.target()
    world.create(
        service(world.namespace, levers={"powerCap": {"min": "350W", "max": "700W"}, "engine": {"maxNumSeqs": [64]}})
    )
    world.tick(3)
    found = world.condition("Rollout")
    if world.said("TargetResolved")[0] == "True":
        assert found["status"] == "False"
        assert found["message"]
        assert world.caps(), "power is still kept"
    else:
        assert world.condition("TargetResolved")["message"]
    assert untouched(before, world.target())


def owned(world):
    body = deployment(world.namespace, "chat", replicas=3, pool=world.node)
    body["metadata"]["ownerReferences"] = [
        {
            "apiVersion": "serving.kserve.io/v1alpha1",
            "kind": "LLMInferenceService",
            "name": "chat",
            "uid": "00000000-0000-0000-0000-000000000001",
            "controller": True,
        }
    ]
    return body


def test_a_workload_of_another_controller_is_only_recommended_to(world):
    world.add_node()
    body = owned(world)
    references = body["metadata"].pop("ownerReferences")
    world.deploy(body)
    world.report_agent()
    world.measure(rate=0.5)
    # Set while the test looks, or the garbage collector takes the object of an owner that does not exist.
    live = world.operator.cache.get
    world.operator.cache.get = lambda kind, namespace, name: with_owner(live(kind, namespace, name), references)
    before = world.target()
    world.create(service(world.namespace, levers=HUNGRY))
    for _ in range(8):
        world.advance(120)
        world.report_agent()
        world.measure(rate=0.5)
        world.tick()
    conflict = world.condition("Conflict")
    assert (conflict["status"], conflict["reason"]) == ("True", "OwnedByController")
    assert "LLMInferenceService chat" in conflict["message"]
    assert world.said("Rollout") == ("False", "OwnedByController")
    assert world.said("Ready") == ("False", "OwnedByController")
    assert untouched(before, world.target())
    assert world.status()["plan"]["replicas"] < 3, "the recommendation is shown"


def with_owner(found, references):
    if found is None or found.get("kind") == "Pod" or "template" not in found.get("spec", {}):
        return found
    found = copy.deepcopy(found)
    found["metadata"]["ownerReferences"] = references
    return found


def autoscaler(namespace, name="chat"):
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name},
            "minReplicas": 1,
            "maxReplicas": 9,
            "metrics": [
                {
                    "type": "Pods",
                    "pods": {"metric": {"name": "q"}, "target": {"type": "AverageValue", "averageValue": "4"}},
                }
            ],
        },
    }


def hours_of_little_traffic(world, rate=0.3, passes=8):
    for _ in range(passes):
        world.advance(300)
        world.report_agent()
        world.measure(rate=rate)
        world.tick()


def test_an_hpa_on_the_target_is_respected(world):
    world.fleet(replicas=3, rate=0.3)
    world.create(autoscaler(world.namespace))
    world.create(service(world.namespace))
    hours_of_little_traffic(world)
    found = world.condition("Conflict")
    assert (found["status"], found["reason"]) == ("True", "TargetManagedByHPA")
    assert "External" in found["message"]
    assert world.replicas() == 3
    assert world.status()["plan"]["replicas"] < 3
    assert world.caps(), "power is still ours"
    world.delete("horizontalpodautoscalers", "chat")
    world.tick()
    assert world.said("Conflict") == ("False", "NoConflict")
    assert world.replicas() < 3


def test_with_external_control_the_number_is_published_and_no_scale_written(world):
    world.fleet(replicas=3, rate=0.3)
    world.create(autoscaler(world.namespace))
    world.create(service(world.namespace, levers={"replicas": {"min": 1, "max": 6, "control": "External"}}))
    hours_of_little_traffic(world)
    assert world.said("Conflict") == ("False", "NoConflict")
    assert world.said("Ready")[0] == "True"
    assert world.replicas() == 3
    assert world.status()["plan"]["replicas"] < 3
    assert world.metric("wattkeeper_plan_replicas") == world.status()["plan"]["replicas"]
    assert ("PATCH", 409) not in world.operator.kube.requests


def test_a_hand_that_changed_replicas_after_us_is_left_alone_for_a_while(world):
    world.fleet(replicas=2, rate=4.0, ttft=0.9)
    world.create(service(world.namespace))
    world.tick(2)
    ours = world.replicas()
    assert ours > 2
    world.rolled_out()
    world.patch("deployments", "chat", {"spec": {"replicas": 2}}, manager="keda-operator")
    world.rolled_out()
    world.report_agent()
    world.measure(rate=4.0, ttft=0.9)
    world.tick(2)
    found = world.condition("Conflict")
    assert (found["status"], found["reason"]) == ("True", "FieldOwnedByOther")
    assert "keda-operator" in found["message"] and "until" in found["message"]
    assert world.replicas() == 2
    world.advance(1000)
    world.report_agent()
    world.measure(rate=4.0, ttft=0.9)
    world.tick(2)
    assert world.said("Conflict") == ("False", "NoConflict")
    assert world.replicas() > 2


def test_no_replica_lever_leaves_replicas_alone(world):
    world.fleet(replicas=3, rate=0.3)
    world.create(service(world.namespace, levers={"powerCap": {"min": "350W", "max": "700W"}}))
    hours_of_little_traffic(world)
    assert world.replicas() == 3
    assert world.said("Ready")[0] == "True"
    assert world.caps()


def test_a_stateful_set_is_kept_like_a_deployment(world):
    body = deployment(world.namespace, "chat", replicas=2, pool=world.node)
    body["kind"] = "StatefulSet"
    del body["spec"]["strategy"]
    body["spec"]["serviceName"] = "chat"
    world.add_node()
    world.deploy(body)
    world.report_agent()
    world.measure(rate=4.0, ttft=0.9)
    found = service(world.namespace)
    found["spec"]["targetRef"]["kind"] = "StatefulSet"
    world.create(found)
    world.tick(2)
    assert world.said("TargetResolved") == ("True", "Found")
    assert world.said("Rollout") == ("True", "Complete")
    live = world.kube.get(world.path("statefulsets", "chat"))
    assert live["spec"]["replicas"] > 2


def test_a_scale_up_is_no_roll_out(world):
    world.fleet(replicas=2, rate=4.0)
    world.create(service(world.namespace))
    world.tick()
    world.cordon()
    world.patch("deployments", "chat", {"spec": {"replicas": 3}}, manager="kubectl")
    world.tick(2)
    assert world.status()["applied"] | {"replicas": 3, "readyReplicas": 2} == world.status()["applied"]
    assert world.said("Rollout") == ("True", "Complete")


@pytest.mark.parametrize(
    ("change", "reason", "hint", "advice"),
    [
        ({"model": "nobody/unheard-of"}, "UnknownModel", "nobody/unheard-of", "ModelProfile"),
        ({"accelerator": {"type": "abacus-9000"}}, "UnknownAccelerator", "abacus-9000", "spec.accelerator.type"),
    ],
)
def test_an_unknown_model_or_accelerator_holds_and_says_what_helps(world, change, reason, hint, advice):
    world.fleet(replicas=3, rate=0.3)
    world.create(service(world.namespace, **change))
    hours_of_little_traffic(world, passes=3)
    found = world.condition("ModelTrusted")
    assert (found["status"], found["reason"]) == ("False", reason)
    assert hint in found["message"] and advice in found["message"]
    assert world.said("Ready") == ("False", reason)
    assert world.replicas() == 3
    assert world.caps() == []
    assert world.status()["observed"]["qps"] == pytest.approx(0.9)


def test_no_gpu_label_asks_for_the_accelerator(world):
    world.fleet(replicas=2)
    world.patch("nodes", world.node, {"metadata": {"labels": {"nvidia.com/gpu.product": None}}})
    world.create(service(world.namespace))
    wait_for_label(world)
    world.tick(2)
    found = world.condition("ModelTrusted")
    assert (found["status"], found["reason"]) == ("False", "AcceleratorNotKnown")
    assert "spec.accelerator.type" in found["message"]
    world.change(accelerator={"type": "nvidia-h100-sxm"})
    world.tick(2)
    assert world.said("ModelTrusted")[0] == "True"


def wait_for_label(world):
    from tests.controller.world import wait
    from wattkeeper.controller import cache

    def gone() -> bool:
        node = world.operator.cache.get(cache.NODES, None, world.node)
        return node is not None and "nvidia.com/gpu.product" not in node["metadata"]["labels"]

    wait(gone)


PROFILE = {
    "kvBytesPerToken": 131072,
    "iteration": {"d0Ms": 9.0, "dtMsPerToken": 0.02, "dkvMsPerKiloToken": 0.02, "daMsPerMegaTokenSquared": 0.1},
    "relativeError": 0.05,
    "provenance": "Measured",
}


@pytest.mark.parametrize("accelerator", ["nvidia-h100-sxm", "NVIDIA-H100-80GB-HBM3"])
def test_a_model_profile_that_fits_is_used_also_by_an_alias(world, accelerator):
    world.fleet(replicas=2)
    world.create(service(world.namespace))
    world.tick()
    without = world.status()["plan"]["predicted"]["tpot"]
    world.create(
        {
            "apiVersion": "wattkeeper.io/v1alpha1",
            "kind": "ModelProfile",
            "metadata": {"name": "measured", "namespace": world.namespace},
            "spec": {
                "model": "meta-llama/Llama-3.1-8B-Instruct",
                "accelerator": accelerator,
                "gpusPerReplica": 1,
                **PROFILE,
            },
        }
    )
    world.tick()
    assert world.status()["plan"]["predicted"]["tpot"] != without
    assert world.said("ModelTrusted") == ("True", "Measured")


def test_pods_of_other_namespaces_are_not_ours(world):
    world.fleet(replicas=2)
    world.source.pods[("elsewhere", world.pod_names()[0])] = reading("elsewhere", "x", rate=100.0)
    world.create(service(world.namespace))
    world.tick()
    assert world.status()["observed"]["qps"] == 8.0
