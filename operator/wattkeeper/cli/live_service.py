"""A live service for commands that speak of one: their common options, and its objects from a cluster or a file."""

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import pydantic
import typer
import yaml

from wattkeeper.api import inference_service as api
from wattkeeper.api import service_status
from wattkeeper.api.base import GROUP, VERSION
from wattkeeper.api.model_profile import ModelProfile
from wattkeeper.controller import kube
from wattkeeper.domain.errors import WattkeeperError

ServiceName = Annotated[str, typer.Argument(metavar="NAMESPACE/NAME", help="The InferenceService.")]
StatusFile = Annotated[
    Path | None,
    typer.Option(
        "--status",
        metavar="FILE",
        help="Read objects from what `kubectl get wis,wmp -n NAMESPACE -o yaml` wrote, not from a cluster.",
    ),
]
ModelFile = Annotated[
    Path | None, typer.Option(help="Model file, if the operator runs with another than the one it ships with.")
]
Kubeconfig = Annotated[str | None, typer.Option(envvar="KUBECONFIG", help="Left out: the pod's ServiceAccount.")]
Context = Annotated[str | None, typer.Option(help="Context of the kubeconfig.")]


class Form(StrEnum):
    """Form of the answer."""

    TEXT = "text"
    JSON = "json"


def name_of(service: str) -> tuple[str, str]:
    """Namespace and name of what was typed. Raises typer.BadParameter: it is not NAMESPACE/NAME."""
    namespace, separator, name = service.partition("/")
    if not separator or not namespace or not name:
        raise typer.BadParameter(f"{service!r} is not NAMESPACE/NAME", param_hint="NAMESPACE/NAME")
    return namespace, name


def from_cluster(
    namespace: str, name: str, kubeconfig: str | None, context: str | None, *, with_profile: bool = True
) -> list[dict[str, Any]]:
    """The InferenceService and, where wanted, the ModelProfile that keeps its readings."""
    api_server = kube.Kube(api=kube.load_client(kubeconfig, context))
    body = {**api_server.get(kube.service_path(namespace, name)), "kind": "InferenceService"}
    profile = ((body.get("status") or {}).get("profile") or {}).get("modelProfile")
    if profile is None or not with_profile:
        return [body]
    path = kube.path_of("modelprofiles", group=GROUP, version=VERSION, namespace=namespace, name=profile)
    return [body, {**api_server.get(path), "kind": "ModelProfile"}]


def from_file(path: Path) -> list[dict[str, Any]]:
    """All objects of a file that kubectl wrote. Raises WattkeeperError: it is none."""
    try:
        documents = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        why = " ".join(str(error).split())
        raise WattkeeperError(
            f"{path} cannot be read as YAML or JSON: {why}. Write it with `kubectl get wis,wmp -n NAMESPACE -o yaml`"
        ) from error
    found: list[dict[str, Any]] = []
    for document in documents:
        if not isinstance(document, dict):
            raise WattkeeperError(f"{path} holds no Kubernetes object: write it with `kubectl get wis,wmp -o yaml`")
        found += document.get("items") or [document]
    return found


def service_in(service: str, objects: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The InferenceService NAMESPACE/NAME among objects. Raises WattkeeperError: it is not among them."""
    namespace, _, name = service.partition("/")
    body = next((item for item in objects if _is(item, "InferenceService", namespace, name)), None)
    if body is None:
        raise WattkeeperError(f"there is no InferenceService {service} among {len(objects)} objects")
    return body


def parsed(
    service: str, objects: Sequence[dict[str, Any]]
) -> tuple[api.InferenceServiceSpec, service_status.InferenceServiceStatus, ModelProfile | None]:
    """Spec and status of the service, and the ModelProfile that keeps its readings.

    Raises WattkeeperError: the service is not among the objects, or one of them is of another version.
    """
    namespace, _, _ = service.partition("/")
    body = service_in(service, objects)
    try:
        live = service_status.InferenceServiceStatus.model_validate(body.get("status") or {})
        spec = api.InferenceServiceSpec.model_validate(body.get("spec") or {})
        kept_by = live.profile.model_profile
        owner = next((item for item in objects if _is(item, "ModelProfile", namespace, kept_by)), None)
        profile = None if owner is None else ModelProfile.model_validate({"status": {}, **owner})
    except pydantic.ValidationError as error:
        raise WattkeeperError(f"{service} or its ModelProfile is not of this version of wattkeeper: {error}") from error
    return spec, live, profile


def _is(item: dict[str, Any], kind: str, namespace: str, name: str | None) -> bool:
    meta = item.get("metadata") or {}
    return (item.get("kind"), meta.get("namespace"), meta.get("name")) == (kind, namespace, name)
