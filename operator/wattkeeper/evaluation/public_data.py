"""All public measured data that the project reads, in one list: where from, which licence, there or not, as expected.

None of it is shipped. Power and energy come from `energy/`, measured kernels from `kernels/`, recorded traffic from
`traces/`; each set is checked by the loader that uses it, and what a loader leaves out or repairs is said.
"""

import dataclasses
import posixpath
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from wattkeeper.domain.errors import ChangedDataError, DataFileError, WattkeeperError
from wattkeeper.energy import data, powercap_data
from wattkeeper.energy.row_checks import RefusedRow, RefusedRowsError
from wattkeeper.energy.sources import Source
from wattkeeper.evaluation import club_literals, kernel_data
from wattkeeper.evaluation.kernel_data import KernelSet
from wattkeeper.traces import sources as traces
from wattkeeper.traces.reading import CUT_OFF
from wattkeeper.traces.sources import State, TraceSource

_GITHUB = "https://github.com/"


@dataclass(frozen=True, kw_only=True)
class Download:
    """One file to fetch."""

    path: str
    """Below the address of raw files: owner/repository/commit/path."""
    target: str
    """In the data folder; of what is converted, a name."""


@dataclass(frozen=True, kw_only=True)
class Content:
    """What a loader found in a set."""

    rows: int | None = None
    """Rows that are used; None: not counted."""
    left_out: tuple[RefusedRow, ...] = ()
    """Rows of the expected content that no loader returns."""
    notes: tuple[str, ...] = ()
    """What else is left out or repaired, with counts."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a check found."""

    state: State
    content: Content = Content()
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
    convert: Callable[[Path, Path], None] | None = None
    """(folder of the downloads, data folder): makes the first of `copies` out of them; None: they are it."""
    read: Callable[[Path, bool], Content]
    """(data folder, whether the content must be the expected one). Raises WattkeeperError."""
    checksum_known: bool = True

    def missing(self, folder: Path) -> tuple[str, ...]:
        """Files that the most complete copy lacks; none: a full copy is there."""
        lacking = [[name for name in names if not (folder / name).is_file()] for names in self.copies]
        shares = [len(names) / len(every) for names, every in zip(lacking, self.copies, strict=True)]
        return tuple(lacking[shares.index(min(shares))])

    def absent(self, folder: Path) -> bool:
        """Whether not one of its files is there."""
        return not any((folder / name).is_file() for names in self.copies for name in names)

    def check(self, folder: Path) -> Verdict:
        """Read it; other content than the expected one is still searched for impossible rows."""
        if self.absent(folder):
            return Verdict(state=State.ABSENT)
        lacking = self.missing(folder)
        if lacking:
            return Verdict(state=State.INCOMPLETE, message=f"{_shown(lacking)} missing: copy from {self.origin}")
        try:
            content = self.read(folder, True)
            return Verdict(state=State.AS_EXPECTED if self.checksum_known else State.UNCHECKED, content=content)
        except ChangedDataError as error:
            message = str(error)
        except RefusedRowsError as error:
            return Verdict(state=State.BROKEN, message="impossible rows", refused=error.refused)
        except WattkeeperError as error:
            return Verdict(state=State.BROKEN, message=str(error))
        try:
            return Verdict(state=State.CHANGED, content=self.read(folder, False), message=message)
        except RefusedRowsError as error:
            return Verdict(state=State.CHANGED, message=message, refused=error.refused)
        except WattkeeperError as error:
            return Verdict(state=State.BROKEN, message=str(error))


_FILES_SHOWN = 3


def _shown(names: Sequence[str]) -> str:
    if len(names) == 1:
        return f"{names[0]} is"
    more = f" and {len(names) - _FILES_SHOWN} more" if len(names) > _FILES_SHOWN else ""
    return ", ".join(names[:_FILES_SHOWN]) + f"{more} are"


def find(names: Sequence[str]) -> tuple[PublicData, ...]:
    """The sets of these names, all where none is given. Raises DataFileError: an unknown name."""
    known = {each.name: each for each in ALL}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise DataFileError(f"no public data is called {', '.join(unknown)}; known are {', '.join(known)}")
    return tuple(known[name] for name in names) if names else ALL


def _measured(
    source: Source,
    kind: str,
    read: Callable[[Path, bool], Content],
    *,
    targets: tuple[str, ...] = (),
    paths: tuple[str, ...] | None = None,
) -> PublicData:
    """`targets` are the files in the data folder that `paths` of upstream become; `source.paths` where left out."""
    flat = ((f"{source.folder}/{source.flat_file}",),) if source.flat_file else ()
    return PublicData(
        name=source.name,
        kind=kind,
        licence=source.licence,
        origin=f"{_GITHUB}{source.repository} at {source.commit}, {source.shown_paths}",
        copies=(*flat, targets) if targets else flat,
        downloads=tuple(
            Download(path=f"{source.repository}/{source.commit}/{path}", target=target)
            for path, target in zip(source.paths if paths is None else paths, targets, strict=True)
        )
        if targets
        else (),
        read=read,
    )


def _counted(load: Callable[..., pd.DataFrame]) -> Callable[[Path, bool], Content]:
    return lambda folder, check: Content(rows=len(load(folder, check=check)))


def _club(
    source: Source, kind: str, load: Callable[..., pd.DataFrame], programs: tuple[str, ...],
    convert: Callable[[Path, Path], None],
) -> PublicData:  # fmt: skip
    base = f"{source.repository}/{source.commit}/{club_literals.FOLDER}"
    return dataclasses.replace(
        _measured(source, kind, _counted(load)),
        downloads=tuple(Download(path=f"{base}/{name}", target=name) for name in programs),
        convert=convert,
    )


def _nlr(folder: Path, check: bool) -> Content:
    return Content(rows=len(data.load_nlr(folder, check=check)), left_out=data.failed_runs(folder))


def _rtx_pro_6000(folder: Path, check: bool) -> Content:
    table = powercap_data.load_rtx_pro_6000(folder, check=check)
    return Content(rows=len(table), notes=(powercap_data.warm_up_note(folder),))


def _kernels(wanted: KernelSet) -> PublicData:
    return _measured(
        wanted.source,
        "kernels",
        lambda folder, check: Content(rows=sum(map(len, kernel_data.load(wanted, folder, check=check)))),
        targets=tuple(table.file for table in wanted.tables),
    )


def _trace(source: TraceSource) -> PublicData:
    def read(folder: Path, check: bool) -> Content:
        loaded = traces.load(source, folder)
        found = traces.content_sha256(loaded)
        if check and source.sha256 is not None and found != source.sha256:
            raise ChangedDataError(
                f"{', '.join(source.files)}: the content (SHA-256 {found}) is not the expected one ({source.sha256}): "
                f"get it from {source.address}"
            )
        notes = traces.notes(loaded)
        if found == source.sha256:  # So it is not cut off.
            notes = tuple(note for note in notes if not note.endswith(CUT_OFF))
        return Content(notes=notes)

    return PublicData(
        name=source.name,
        kind="traffic",
        licence=source.licence,
        origin=source.address,
        copies=(source.files,),
        downloads=() if source.upstream is None else (Download(path=source.upstream, target=source.files[0]),),
        read=read,
        checksum_known=source.sha256 is not None,
    )


_SWEEP = "hardware-tests/vllm-power-sweep-2026-04-29"

ALL: tuple[PublicData, ...] = (
    _measured(
        data.ML_ENERGY_V3,
        "energy",
        _counted(data.load_ml_energy),
        targets=tuple(f"{data.ML_ENERGY_V3.folder}/{posixpath.basename(path)}" for path in data.ML_ENERGY_V3.paths),
    ),
    _measured(data.NLR_H100, "energy", _nlr, targets=(f"{data.NLR_H100.folder}/metadata.csv",)),
    _club(
        powercap_data.RTX_CURVES,
        "power caps",
        powercap_data.load_rtx_curves,
        club_literals.CURVE_PROGRAMS,
        club_literals.write_curves,
    ),
    _club(
        powercap_data.RTX_CLOCKS,
        "clocks",
        powercap_data.load_clock_grid,
        club_literals.CLOCK_PROGRAMS,
        club_literals.write_clocks,
    ),
    _measured(
        powercap_data.RTX_PRO_6000,
        "power caps",
        _rtx_pro_6000,
        targets=tuple(f"{powercap_data.RTX_PRO_6000.folder}/{name}" for name in powercap_data.rtx_pro_6000_files()),
        paths=tuple(f"{_SWEEP}/{name}" for name in powercap_data.rtx_pro_6000_files()),
    ),
    *(_kernels(wanted) for wanted in kernel_data.ALL),
    *(_trace(source) for source in traces.SOURCES),
)
