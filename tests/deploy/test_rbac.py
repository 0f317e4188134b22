"""The operator's rights: explained, without wildcards, and enough for what the operator watches."""

from __future__ import annotations

import pathlib
import re
from typing import Any

import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[2]
SOURCE = ROOT / "manifests" / "base" / "rbac.yaml"
OPERATOR_ROLES = ("wattkeeper-fleet", "wattkeeper-nodes", "wattkeeper-lease")


def rules(*names: str) -> list[dict[str, Any]]:
    documents = yaml.safe_load_all(SOURCE.read_text())
    roles = [found for found in documents if found["kind"] in ("Role", "ClusterRole")]
    return [rule for role in roles if role["metadata"]["name"] in names for rule in role["rules"]]


def allowed(group: str, resource: str) -> set[str]:
    matching = [rule for rule in rules(*OPERATOR_ROLES) if group in rule["apiGroups"] and resource in rule["resources"]]
    return {verb for rule in matching for verb in rule["verbs"]}


def test_there_are_no_wildcards():
    for rule in rules(*OPERATOR_ROLES, "wattkeeper-view", "wattkeeper-edit"):
        for values in rule.values():
            assert not any("*" in value for value in values), rule


def test_every_rule_of_the_operator_gives_its_reason():
    for document in SOURCE.read_text().split("---\n"):
        name = re.search(r"^  name: (\S+)$", document, re.M)
        if name and name[1] in OPERATOR_ROLES and "rules:" in document:
            lines = document.split("rules:\n")[1].splitlines()
            bare = [
                line
                for before, line in zip(["", *lines], lines, strict=False)
                # The second of a pair of rules may share the reason of the first.
                if line.startswith("  - apiGroups") and not before.startswith("  #") and "keda.sh" not in line
            ]
            assert bare == []


def test_the_operator_writes_only_what_it_owns_or_was_asked_to_move():
    named = {
        (group, resource)
        for rule in rules(*OPERATOR_ROLES)
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    written = {name: sorted(allowed(*name) - {"get", "list", "watch"}) for name in named}
    assert {name: verbs for name, verbs in written.items() if verbs} == {
        ("wattkeeper.io", "inferenceservices"): ["patch"],
        ("wattkeeper.io", "inferenceservices/status"): ["patch"],
        ("wattkeeper.io", "modelprofiles/status"): ["patch"],
        ("wattkeeper.io", "nodepowercaps"): ["create", "patch"],
        ("apps", "deployments"): ["patch"],
        ("apps", "statefulsets"): ["patch"],
        ("apps", "deployments/scale"): ["patch"],
        ("apps", "statefulsets/scale"): ["patch"],
        ("", "events"): ["create"],
        ("coordination.k8s.io", "leases"): ["create", "update"],
    }


def test_everything_that_is_watched_may_be_watched():
    cache = pytest.importorskip("wattkeeper.controller.cache")
    for kind in cache.KINDS:
        assert {"list", "watch"} <= allowed(kind.group, kind.plural), kind
