"""Errors that say what is wrong, where, and what to do next."""


class WattkeeperError(Exception):
    """Base of all errors that a user can act on."""


class UnknownAcceleratorError(WattkeeperError):
    """The accelerator is not in the catalogue and nothing tells its peak figures."""


class UnknownModelError(WattkeeperError):
    """The model is not in the catalogue and nothing tells its architecture."""


class TelemetryError(WattkeeperError):
    """A metrics source did not answer as expected."""


class ModelFileError(WattkeeperError):
    """A trained model file is missing, corrupt, or of another format."""


class LibraryMissingError(ModelFileError):
    """The library that a trained model needs cannot be loaded on this machine."""


class DataFileError(WattkeeperError):
    """A file of measured data is missing, corrupt, or not the version that this program was written against."""


class ChangedDataError(DataFileError):
    """A file of measured data can be read, but its content is not the one that this program was written against."""


class PatchRefusedError(WattkeeperError):
    """The engine arguments of a workload cannot be changed safely; `reason` is a CamelCase word for a condition."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
