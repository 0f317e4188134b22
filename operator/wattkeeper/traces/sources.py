"""Where public traces come from: address, licence, and what their content must be. None of them is shipped.

The checksum is taken over what a loader returns (times, lengths, block ids, rates), so that other line ends, further
columns or a repacked copy are equally good. Sources that could not be reached when this was written have none.
"""

import hashlib
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wattkeeper.traces import formats, servegen
from wattkeeper.traces.history import History
from wattkeeper.traces.prefixes import PrefixTrace
from wattkeeper.traces.servegen import ServeGen
from wattkeeper.traces.trace import Lengths, RateSeries, Trace, TraceError

Loaded = formats.Found | ServeGen
_AZURE = "https://github.com/Azure/AzurePublicDataset"
_AZURE_COMMIT = "b469a113cedca53ddc3bdea71a143dc4b7d8700c"
_MOONCAKE_COMMIT = "3b5a594133958449a1feaf1c9e0fc1b553e34a28"
_MOONCAKE_PATH = "FAST25-release/traces/conversation_trace.jsonl"
_SHAREGPT_COMMIT = "20bdc49d6c1d23de84c9d4e7a8626ea33fe498f4"
_SHAREGPT_PATH = "data/trace_data/sharegpt/sharegpt_val_10k_llama2.csv"


@dataclass(frozen=True, kw_only=True)
class TraceSource:
    """One public trace."""

    name: str
    address: str
    """Where to get it, with the commit where there is one."""
    licence: str
    files: tuple[str, ...]
    """Inside the data folder."""
    sha256: str | None = None
    """Of the content that is used, see `content_sha256`; None: not known."""
    upstream: str | None = None
    """owner/repository/commit/path of the one file, where upstream on GitHub keeps it in the form that is read."""


class State(Enum):
    """What of a source is there."""

    ABSENT = "absent"
    INCOMPLETE = "incomplete"
    AS_EXPECTED = "as expected"
    CHANGED = "other content"
    UNCHECKED = "present, no checksum known"
    BROKEN = "cannot be read"


def _servegen(service: str, sha256: str | None) -> TraceSource:
    return TraceSource(
        name=f"servegen-{service.rpartition('_')[2]}",
        address="https://github.com/alibaba/ServeGen at f891d1189eb32b3868dfc443800c4150548c282a, data/, "
        "summed over clients",
        licence="Apache-2.0, cite arXiv 2505.09999",
        files=(f"traces/servegen/agg_{service}_10min.csv", f"traces/servegen/lengths_{service}.json"),
        sha256=sha256,
    )


SOURCES = (
    *(
        TraceSource(
            name=f"azure-2023-{kind}",
            address=f"{_AZURE} at {_AZURE_COMMIT}, data/AzureLLMInferenceTrace_{kind}.csv",
            licence="CC-BY-4.0, cite Splitwise (ISCA 2024)",
            files=(f"traces/azure-2023/AzureLLMInferenceTrace_{kind}.csv",),
            sha256=sha256,
            upstream=f"Azure/AzurePublicDataset/{_AZURE_COMMIT}/data/AzureLLMInferenceTrace_{kind}.csv",
        )
        for kind, sha256 in (
            ("conv", "7ae8d265ad7e96df835667392053bf4568e080f2d9c175ec2040828507edd75d"),
            ("code", "a1a44fd296af35841214291430690a0ac7df4493b74d90afbbfb860348b94882"),
        )
    ),
    *(
        TraceSource(
            name=f"azure-2024-{kind}",
            address=f"{_AZURE}/blob/{_AZURE_COMMIT}/AzureLLMInferenceDataset2024.md, its download link ({kind})",
            licence="CC-BY-4.0, cite DynamoLLM (HPCA 2025)",
            files=(f"traces/azure-2024/AzureLLMInferenceTrace_{kind}_1week.csv",),
        )
        for kind in ("conv", "code")
    ),
    *(
        TraceSource(
            name=f"azure-2024-{kind}-digitised",
            address=f"{_AZURE} at {_AZURE_COMMIT}, plots of analysis/AzureLLMInferenceDataset2024.ipynb, "
            "digitised to 10 minutes",
            licence="CC-BY-4.0, cite DynamoLLM (HPCA 2025)",
            files=(f"traces/azure-2024-digitised/azure2024_{kind}_week_digitised_10min.csv",),
            sha256=sha256,
        )
        for kind, sha256 in (
            ("conv", "d28db1be4147bc7b2d279aab47462a97cbb0d0a3452b78fdc811edebfd2fefdd"),
            ("code", "39e20d1e8bbd40988c4b06ed3f3b22ef4b83c02144840a5346c41bccb8a3dff2"),
        )
    ),
    TraceSource(
        name="burstgpt",
        address="https://github.com/HPMLL/BurstGPT, release v2.0, BurstGPT_1.csv (BurstGPT_3.csv is read as well)",
        licence="CC-BY-4.0",
        files=("traces/burstgpt/BurstGPT_1.csv",),
    ),
    _servegen("language_m-small", "635cb3d7d174178fb12d230d8955cb74920acb6186eea682600a577b5a29d05d"),
    _servegen("language_m-mid", "5c209accb6de36c41125d14e969fb63dcf1e0458f91298600c7c9d4a65d862db"),
    _servegen("language_m-large", "90757cfd29486b9db8a1e20f1e7c297855b4baed0ac84be570dfc066959fbf85"),
    _servegen("reason_deepseek-r1", "4bb36e9700e0c653e9d24bef76b440468313d0ddcd54acdc7849f6f63cfdd294"),
    TraceSource(
        name="mooncake-conversation",
        address=f"https://github.com/kvcache-ai/Mooncake at {_MOONCAKE_COMMIT}, {_MOONCAKE_PATH}",
        licence="Apache-2.0",
        files=("traces/mooncake/conversation_trace.jsonl",),
        sha256="e5611db827f6fd794b149b64f0f452d2a72a313a7c8db52b13fbcba732c98e26",
        upstream=f"kvcache-ai/Mooncake/{_MOONCAKE_COMMIT}/{_MOONCAKE_PATH}",
    ),
    TraceSource(
        name="sharegpt",
        address=f"https://github.com/AKafakA/vidur_opt_scheduler at {_SHAREGPT_COMMIT}, {_SHAREGPT_PATH}",
        licence="MIT",
        files=("traces/sharegpt/sharegpt_val_10k_llama2_lengths.csv",),
        sha256="bf8aab7d8592ce8cef1198b0af71bf1b1e9f2d0a72e461e2c3d021846b216c15",
        upstream=f"AKafakA/vidur_opt_scheduler/{_SHAREGPT_COMMIT}/{_SHAREGPT_PATH}",
    ),
)


def find(name: str) -> TraceSource:
    """The source of that name. Raises TraceError."""
    for source in SOURCES:
        if source.name == name:
            return source
    raise TraceError(f"no trace {name!r}, and no such file; known are {', '.join(source.name for source in SOURCES)}")


def load(source: TraceSource, folder: Path) -> Loaded:
    """From the data folder; content is not checked. Raises TraceError: absent, or a line is wrong."""
    paths = [folder / name for name in source.files]
    for path in paths:
        if not path.is_file():
            raise TraceError(f"{path} is missing: get it from {source.address} ({source.licence})")
    return servegen.load(paths[0], paths[1]) if len(paths) == 2 else formats.read(paths[0])


def notes(loaded: Loaded) -> tuple[str, ...]:
    """What a loader repaired or left out, with counts."""
    match loaded:
        case Trace() | Lengths():
            return loaded.repairs
        case ServeGen():
            gaps = int(loaded.gap.sum())
            found = (f"{gaps} of {len(loaded.gap)} windows are gaps of the collection",) if gaps else ()
            return (*found, *loaded.repairs)
        case _:
            return ()


def state(source: TraceSource, folder: Path) -> State:
    """Whether it is there and what it should be. A source without a checksum is not read."""
    if not all((folder / name).is_file() for name in source.files):
        return State.ABSENT
    if source.sha256 is None:
        return State.UNCHECKED
    try:
        found = content_sha256(load(source, folder))
    except TraceError:
        return State.BROKEN
    return State.AS_EXPECTED if found == source.sha256 else State.CHANGED


def content_sha256(loaded: Loaded) -> str:
    """SHA-256 of what is used; times in whole microseconds, other figures as doubles, little-endian."""
    parts: list[npt.NDArray[Any]]
    match loaded:
        case Trace():
            times = np.rint(loaded.times_seconds * 1e6).astype(np.int64)
            parts = [times, loaded.prompt_tokens, loaded.output_tokens]
            if isinstance(loaded, PrefixTrace):
                parts += [loaded.blocks.ids, loaded.blocks.offsets]
            else:
                parts.append(loaded.cached_tokens)
        case RateSeries():
            parts = [np.array(loaded.times_seconds), np.array(loaded.requests_per_second)]
        case Lengths():
            parts = [loaded.prompt_tokens, loaded.output_tokens]
        case History():
            raise TraceError("a history of one's own has no checksum")
        case ServeGen():
            parts = [loaded.times_seconds, loaded.requests_per_second, loaded.coefficient_of_variation]
            parts += [np.array(each) for side in (loaded.prompt, loaded.output) for each in (side.tokens, side.weights)]
    digest = hashlib.sha256()
    for part in parts:
        little = part.dtype.newbyteorder("<")
        digest.update(f"{little.str}{part.shape}".encode())
        digest.update(np.ascontiguousarray(part, dtype=little).tobytes())
    return digest.hexdigest()
