"""What the API serves: one `Resource` per (group, version, plural)."""

from collections.abc import Callable
from dataclasses import dataclass, field

from wattkeeper.embedded.values import Json

StorageKey = tuple[str, str]
Convert = Callable[[Json], Json]

VERBS = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")


@dataclass(frozen=True, kw_only=True)
class ScalePaths:
    """Where an object keeps what its scale subresource shows; paths as key tuples."""

    spec_replicas: tuple[str, ...] = ("spec", "replicas")
    status_replicas: tuple[str, ...] = ("status", "replicas")
    selector: tuple[str, ...] | None = ("spec", "selector")


@dataclass(frozen=True, kw_only=True)
class Column:
    """One additional printer column of a custom resource."""

    name: str
    type: str
    json_path: str
    format: str = ""
    description: str = ""
    priority: int = 0


@dataclass(frozen=True, kw_only=True)
class Resource:
    """A served resource: names, scope, schema, subresources, and where its objects are stored.

    `generation` names what bumps `metadata.generation`: "spec", "all" (all but metadata and status) or "" (none).
    `unconditional_update` lets a PUT come without a resourceVersion.
    """

    group: str
    version: str
    plural: str
    kind: str
    singular: str
    namespaced: bool
    schema: Json = field(default_factory=dict)
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    status: bool = False
    scale: ScalePaths | None = None
    columns: tuple[Column, ...] = ()
    custom: bool = False
    generation: str = ""
    unconditional_update: bool = True
    keeps_status_on_create: bool = False
    storage: StorageKey = ("", "")
    convert_in: Convert | None = None
    convert_out: Convert | None = None
    selectable: tuple[str, ...] = ()
    subresources: tuple[tuple[str, str, str, str], ...] = ()

    @property
    def api_version(self) -> str:
        """Group and version as objects name them."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def list_kind(self) -> str:
        """Kind of a list of these."""
        return f"{self.kind}List"

    def shown(self, obj: Json) -> Json:
        """Return a stored object as this resource serves it (its own version); never changes the stored one."""
        if self.convert_out is not None:
            return self.convert_out(obj)
        if obj.get("apiVersion") == self.api_version:
            return obj
        return {**obj, "apiVersion": self.api_version}
