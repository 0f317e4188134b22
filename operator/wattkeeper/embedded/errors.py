"""API errors: each becomes a `Status` object with the code and the reason a real API server gives."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from wattkeeper.embedded.values import Json


@dataclass(frozen=True, kw_only=True)
class Cause:
    """One field of an object that was refused."""

    field: str
    message: str
    reason: str = "FieldValueInvalid"


class ApiError(Exception):
    """A refused request: HTTP code, CamelCase reason, message, and details of the `Status`."""

    def __init__(self, code: int, reason: str, message: str, details: Json | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.details = details

    def status(self) -> Json:
        """Return the `Status` object."""
        status: Json = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "code": self.code,
        }
        if self.details is not None:
            status["details"] = self.details
        return status


def qualified(group: str, name: str) -> str:
    """Return `plural` or `plural.group`, as messages name a resource."""
    return f"{name}.{group}" if group else name


def bad_request(message: str) -> ApiError:
    """Return 400: the request cannot be understood."""
    return ApiError(400, "BadRequest", message)


def forbidden(group: str, plural: str, name: str, why: str) -> ApiError:
    """Return 403: understood, and not allowed."""
    message = f'{qualified(group, plural)} "{name}" is forbidden: {why}'
    return ApiError(403, "Forbidden", message, {"name": name, "group": group, "kind": plural})


def not_found(group: str, plural: str, name: str) -> ApiError:
    """Return 404 for an object."""
    message = f'{qualified(group, plural)} "{name}" not found'
    return ApiError(404, "NotFound", message, {"name": name, "group": group, "kind": plural})


def no_resource() -> ApiError:
    """Return 404 for a group, version or resource that nobody defined."""
    return ApiError(404, "NotFound", "the server could not find the requested resource", {})


def method_not_allowed() -> ApiError:
    """Return 405: the resource exists and does not take this verb."""
    message = "the server does not allow this method on the requested resource"
    return ApiError(405, "MethodNotAllowed", message, {})


def not_acceptable_media(message: str) -> ApiError:
    """Return 415: the content type of the body is not taken here."""
    return ApiError(415, "UnsupportedMediaType", message, {})


def already_exists(group: str, plural: str, name: str) -> ApiError:
    """Return 409: the name is taken."""
    message = f'{qualified(group, plural)} "{name}" already exists'
    return ApiError(409, "AlreadyExists", message, {"name": name, "group": group, "kind": plural})


def conflict(group: str, plural: str, name: str, why: str) -> ApiError:
    """Return 409: the writer's view of the object is old."""
    message = f'Operation cannot be fulfilled on {qualified(group, plural)} "{name}": {why}'
    return ApiError(409, "Conflict", message, {"name": name, "group": group, "kind": plural})


STALE = "the object has been modified; please apply your changes to the latest version and try again"


def invalid(group: str, kind: str, name: str, causes: Sequence[Cause]) -> ApiError:
    """Return 422: the object breaks its schema or its rules; every cause names its field."""
    texts = [f"{cause.field}: {cause.message}" for cause in causes]
    listed = texts[0] if len(texts) == 1 else "[" + ", ".join(texts) + "]"
    details: dict[str, Any] = {
        "name": name,
        "group": group,
        "kind": kind,
        "causes": [{"reason": c.reason, "message": c.message, "field": c.field} for c in causes],
    }
    return ApiError(422, "Invalid", f'{qualified(group, kind)} "{name}" is invalid: {listed}', details)


def unprocessable(message: str) -> ApiError:
    """Return 422 without field causes (a JSON patch that does not fit)."""
    return ApiError(422, "Invalid", message, {})


def gone(asked: int, oldest: int) -> ApiError:
    """Return 410: the watch history no longer reaches back to the asked version."""
    return ApiError(410, "Expired", f"too old resource version: {asked} ({oldest})")


def not_served(what: str) -> ApiError:
    """Return 501: a part of Kubernetes that this small API leaves out on purpose."""
    return ApiError(501, "NotImplemented", f"{what} is not served by the embedded API; use a real cluster for it")
