r"""Reading of the few protobuf bodies that kubectl sends: `kubectl create namespace|configmap|secret|serviceaccount`.

The wire format is Google's; the envelope (`k8s\0` and an `Unknown` message) and the field numbers are those of the
published `generated.proto` files of apimachinery and core/v1. All else is refused with advice.
"""

import base64
from collections.abc import Iterator
from typing import Any

from wattkeeper.embedded import errors
from wattkeeper.embedded.errors import ApiError
from wattkeeper.embedded.values import Json

_MAGIC = b"k8s\x00"

# A field is (name, form): form is "text", "number", "flag", "texts", "text-map", "bytes-map", or a nested message.
Message = dict[int, tuple[str, Any]]

_METADATA: Message = {
    1: ("name", "text"),
    2: ("generateName", "text"),
    3: ("namespace", "text"),
    11: ("labels", "text-map"),
    12: ("annotations", "text-map"),
    14: ("finalizers", "texts"),
}
_NAMED: Message = {1: ("metadata", _METADATA)}
_KINDS: dict[tuple[str, str], Message] = {
    ("v1", "Namespace"): _NAMED,
    ("v1", "ServiceAccount"): {**_NAMED, 4: ("automountServiceAccountToken", "flag")},
    ("v1", "ConfigMap"): {
        **_NAMED,
        2: ("data", "text-map"),
        3: ("binaryData", "bytes-map"),
        4: ("immutable", "flag"),
    },
    ("v1", "Secret"): {
        **_NAMED,
        2: ("data", "bytes-map"),
        3: ("type", "text"),
        4: ("stringData", "text-map"),
        5: ("immutable", "flag"),
    },
}
_UNKNOWN: Message = {1: ("type", {1: ("apiVersion", "text"), 2: ("kind", "text")}), 2: ("raw", "bytes")}


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Yield number and value of each field: an int or bytes."""
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        number, form = tag >> 3, tag & 7
        if form == 0:
            value, position = _varint(data, position)
            yield number, value
            continue
        if form == 2:
            length, position = _varint(data, position)
        elif form in (1, 5):
            length = 8 if form == 1 else 4
        else:
            raise ValueError(f"wire type {form}")
        if position + length > len(data):
            raise ValueError("cut short")
        yield number, data[position : position + length]
        position += length


def _read(data: bytes, message: Message) -> Json:
    result: Json = {}
    for number, value in _fields(data):
        if number not in message:
            continue
        name, form = message[number]
        if isinstance(form, dict):
            result[name] = _read(value, form)
        elif form == "text":
            if value:
                result[name] = value.decode()
        elif form == "texts":
            result.setdefault(name, []).append(value.decode())
        elif form == "flag":
            result[name] = bool(value)
        elif form == "bytes":
            result[name] = value
        else:
            entry = dict(_fields(value))
            item = entry.get(2, b"")
            text = item.decode() if form == "text-map" else base64.b64encode(item).decode()
            result.setdefault(name, {})[entry.get(1, b"").decode()] = text
    return result


def decode(data: bytes) -> Json:
    """Return the object in a protobuf body; raises ApiError 400 on nonsense, 415 for kinds not read."""
    try:
        if not data.startswith(_MAGIC):
            raise ValueError("no envelope")
        envelope = _read(data[len(_MAGIC) :], _UNKNOWN)
        kind = envelope["type"]["apiVersion"], envelope["type"]["kind"]
        if kind not in _KINDS:
            raise _unread(*kind)
        return {"apiVersion": kind[0], "kind": kind[1], **_read(envelope.get("raw", b""), _KINDS[kind])}
    except (ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        raise errors.bad_request(f"the protobuf body cannot be read: {error}") from None


def _unread(version: str, kind: str) -> ApiError:
    return errors.not_acceptable_media(
        f"the embedded API does not read {kind} ({version}) as protobuf: write it to a file and use `kubectl apply -f`"
    )
