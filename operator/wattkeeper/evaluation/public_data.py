"""All public measured data that the project reads, in one list: where from, which licence, there or not, as expected.

None of it is shipped. Power and energy come from `energy/`, recorded traffic from `traces/`; each is checked by the
loader that uses it. Kernel timings have no checksum and are not in the list.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from wattkeeper.domain.errors import ChangedDataError, DataFileError, WattkeeperError
from wattkeeper.energy import data, powercap_data
from wattkeeper.energy.data import Source
from wattkeeper.energy.row_checks import RefusedRow, RefusedRowsError
from wattkeeper.traces import sources as traces
from wattkeeper.traces.sources import State, TraceSource

_GITHUB = "https://github.com/"


@dataclass(frozen=True, kw_only=True)
class Download:
    """One file to fetch."""

    path: str
    """Below the address of raw files: owner/repository/commit/path."""
    target: str
    """In the data folder."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a check found."""

    state: State
    rows: int | None
    """Rows that are used; None: not counted."""
    message: str = ""
    """Why it is not as expected."""
    refused: tuple[RefusedRow, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PublicData:
    """One set of public data."""

    name: str
    kind: str
    licence: str
    origin: str
    """Where a copy is taken from, for people."""
    copies: tuple[tuple[str, ...], ...]
    """Files in the data folder: any one of these groups is a full copy."""
    downloads: tuple[Download, ...]
    """Empty: upstream has it in another form, so that it cannot be fetched by a program."""
    read: Callable[[Path, bool], int | None]
    """(data folder, whether the content must be the expected one) -> rows used. Raises WattkeeperError."""
    checksum_known: bool = True

    def present(self, folder: Path) -> bool:
        """Whether a full copy is there, whatever its content."""
        return any(all((folder / name).is_file() for name in names) for names in self.copies)

    def check(self, folder: Path) -> Verdict:
        """Read it; other content than the expected one is still searched for impossible rows."""
        if not self.present(folder):
            return Verdict(state=State.ABSENT, rows=None)
        try:
            rows = self.read(folder, True)
            return Verdict(state=State.AS_EXPECTED if self.checksum_known else State.UNCHECKED, rows=rows)
        except ChangedDataError as error:
            message = str(error)
        except RefusedRowsError as error:
            return Verdict(state=State.BROKEN, rows=None, message=str(error), refused=error.refused)
        except WattkeeperError as error:
            return Verdict(state=State.BROKEN, rows=None, message=str(error))
        try:
            return Verdict(state=State.CHANGED, rows=self.read(folder, False), message=message)
        except RefusedRowsError as error:
            return Verdict(state=State.CHANGED, rows=None, message=message, refused=error.refused)
        except WattkeeperError as error:
            return Verdict(state=State.BROKEN, rows=None, message=str(error))


def find(names: Sequence[str]) -> tuple[PublicData, ...]:
    """The sets of these names, all where none is given. Raises DataFileError: an unknown name."""
    known = {each.name: each for each in ALL}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise DataFileError(f"no public data is called {', '.join(unknown)}; known are {', '.join(known)}")
    return tuple(known[name] for name in names) if names else ALL


def _measured(
    source: Source, load: Callable[..., pd.DataFrame], kind: str, *, files: tuple[str, ...] = (), flat: bool = True
) -> PublicData:
    """`files`: what of the folder is fetched, named as upstream names it below the last folder they share."""
    targets = tuple(f"{source.folder}/{name}" for name in files)
    paths = source.paths if flat else tuple(f"{_PRO_6000_UPSTREAM}/{name}" for name in files)
    copies = ((f"{source.folder}/{source.flat_file}",),) if flat else ()
    return PublicData(
        name=source.name,
        kind=kind,
        licence=source.licence,
        origin=f"{_GITHUB}{source.repository} at {source.commit}, {', '.join(source.paths)}",
        copies=(*copies, targets) if targets else copies,
        downloads=tuple(
            Download(path=f"{source.repository}/{source.commit}/{path}", target=target)
            for path, target in zip(paths, targets, strict=True)
        )
        if targets
        else (),
        read=lambda folder, check: len(load(folder, check=check)),
    )


def _trace(source: TraceSource) -> PublicData:
    def read(folder: Path, check: bool) -> None:
        found = traces.content_sha256(traces.load(source, folder))
        if check and source.sha256 is not None and found != source.sha256:
            raise ChangedDataError(
                f"{', '.join(source.files)}: the content (SHA-256 {found}) is not the expected one ({source.sha256}): "
                f"get it from {source.address}"
            )

    upstream = _TRACE_PATHS.get(source.name)
    return PublicData(
        name=source.name,
        kind="traffic",
        licence=source.licence,
        origin=source.address,
        copies=(source.files,),
        downloads=() if upstream is None else (Download(path=upstream, target=source.files[0]),),
        read=read,
        checksum_known=source.sha256 is not None,
    )


_PRO_6000_UPSTREAM = "hardware-tests/vllm-power-sweep-2026-04-29"
_AZURE = "Azure/AzurePublicDataset/b469a113/data/AzureLLMInferenceTrace"
_TRACE_PATHS = {
    "azure-2023-conv": f"{_AZURE}_conv.csv",
    "azure-2023-code": f"{_AZURE}_code.csv",
    "mooncake-conversation": "kvcache-ai/Mooncake/3b5a5941/FAST25-release/traces/conversation_trace.jsonl",
}
"""Traces that upstream keeps as one file in the form that is read."""

ALL: tuple[PublicData, ...] = (
    _measured(
        data.ML_ENERGY_V3,
        data.load_ml_energy,
        "energy",
        files=tuple(Path(path).name for path in data.ML_ENERGY_V3.paths),
    ),
    _measured(data.NLR_H100, data.load_nlr, "energy", files=("metadata.csv",)),
    _measured(powercap_data.RTX_CURVES, powercap_data.load_rtx_curves, "power caps"),
    _measured(powercap_data.RTX_CLOCKS, powercap_data.load_clock_grid, "clocks"),
    _measured(
        powercap_data.RTX_PRO_6000,
        powercap_data.load_rtx_pro_6000,
        "power caps",
        files=powercap_data.rtx_pro_6000_files(),
        flat=False,
    ),
    *(_trace(source) for source in traces.SOURCES),
)
