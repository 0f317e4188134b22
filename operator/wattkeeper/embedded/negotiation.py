"""Reading requests and shaping answers: bodies in JSON or YAML, and what the Accept header asks for."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from wattkeeper.embedded import errors, protobuf
from wattkeeper.embedded.options import DeleteOptions, WriteOptions

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True, kw_only=True)
class Form:
    """How objects are to be answered: "" (as they are), `Table` or `PartialObjectMetadata`; includeObject of tables."""

    kind: str = ""
    include: str = "Metadata"


def form(accept: str, query: Mapping[str, str]) -> Form:
    """Return the first form of an Accept header that this API can give."""
    for part in accept.split(","):
        fields = dict(item.strip().partition("=")[::2] for item in part.split(";")[1:])
        wanted = fields.get("as", "")
        if fields.get("g") == "meta.k8s.io" and fields.get("v") == "v1" and "json" in part:
            if wanted == "Table":
                return Form(kind="Table", include=query.get("includeObject", "Metadata"))
            if wanted.startswith("PartialObjectMetadata"):
                return Form(kind="PartialObjectMetadata")
        elif not wanted and ("application/json" in part or "*/*" in part):
            return Form()
    return Form()


def body(raw: bytes, content_type: str) -> Any:
    """Parse a request body; raises ApiError 400 where it is neither JSON nor YAML, 415 for CBOR and most protobuf."""
    if "protobuf" in content_type:
        return protobuf.decode(raw)
    if "cbor" in content_type:
        raise errors.not_acceptable_media("the embedded API takes JSON and YAML bodies")
    if not raw.strip():
        return None
    try:
        return json.loads(raw)
    except ValueError:
        try:
            return yaml.load(raw, Loader=_LOADER)  # noqa: S506 - a safe loader
        except yaml.YAMLError as error:
            raise errors.bad_request(f"the body is neither JSON nor YAML: {error}") from None


def _flag(query: Mapping[str, str], name: str) -> bool:
    return query.get(name, "").lower() in ("true", "1")


def write_options(query: Mapping[str, str], user_agent: str) -> WriteOptions:
    """Read the options of a write; raises ApiError 422 on a dryRun other than All."""
    dry_run = query.get("dryRun", "")
    if dry_run not in ("", "All"):
        raise errors.unprocessable(f'dryRun: Unsupported value: "{dry_run}": supported values: "All"')
    manager = query.get("fieldManager") or user_agent.partition("/")[0].strip() or "unknown"
    return WriteOptions(
        manager=manager,
        dry_run=dry_run == "All",
        validation=query.get("fieldValidation") or "Warn",
        force=_flag(query, "force"),
    )


def delete_options(query: Mapping[str, str], given: Any) -> DeleteOptions:
    """Read the options of a deletion from the query and the body."""
    options = given if isinstance(given, dict) else {}
    grace = query.get("gracePeriodSeconds", options.get("gracePeriodSeconds"))
    orphans = query.get("orphanDependents", options.get("orphanDependents"))
    propagation = query.get("propagationPolicy") or options.get("propagationPolicy")
    if propagation is None:
        propagation = "Orphan" if str(orphans).lower() == "true" else "Background"
    preconditions = options.get("preconditions") or {}
    return DeleteOptions(
        grace_seconds=None if grace is None else int(grace),
        propagation=propagation,
        uid=preconditions.get("uid"),
        resource_version=preconditions.get("resourceVersion"),
        dry_run=query.get("dryRun") == "All" or "All" in (options.get("dryRun") or []),
    )
