"""Options of single requests, as the query and the body of a call give them."""

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class WriteOptions:
    """How a write is to be done; `warnings` collects what the response's Warning headers say."""

    manager: str = "unknown"
    dry_run: bool = False
    validation: str = "Warn"
    force: bool = False
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class DeleteOptions:
    """How to delete: grace (None = the pod's own), `Background`, `Foreground` or `Orphan`, preconditions."""

    grace_seconds: int | None = None
    propagation: str = "Background"
    uid: str | None = None
    resource_version: str | None = None
    dry_run: bool = False
