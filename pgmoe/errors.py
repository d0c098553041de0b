"""Every error that pgmoe raises on purpose.

::

    PgmoeError
    ├── ConfigError            an option that cannot be honoured (also a ValueError)
    │   └── BudgetTooSmall     a memory budget below the smallest that works
    ├── CheckpointError        a model folder that cannot be served
    │   ├── UnsupportedModel   dense, unknown architecture, quantised, remote code
    │   └── CorruptCheckpoint  missing shard, truncated file, wrong shape or dtype
    ├── InvalidRequest         the caller's own mistake (also a ValueError)
    │   └── PromptTooLong      prompt and answer exceed the context
    ├── ModelNotFound          a model name nobody serves here
    ├── EngineOverloaded       too many requests wait already; try again later
    ├── EngineClosed           the engine is shut down
    │   └── DeviceLost         its device does nothing any more; restart it
    ├── DeadlineExceeded       the request's own deadline passed
    ├── RequestCancelled       its caller, or who stood between, gave the request up
    ├── WeightReadError        bytes that are read while serving could not be had
    │   └── ExpertReadError    those of one expert
    ├── NonFiniteLogits        the model computed NaN or infinity
    ├── TrainingDiverged       so did a loss in training
    └── GenerationFailed       anything unforeseen that ended a request; the log has it

Messages name the value, the limit and the way out. Foreign errors are mapped where they enter.
"""

from __future__ import annotations


class PgmoeError(Exception):
    """Base of all errors below."""


class ConfigError(PgmoeError, ValueError):
    """An option has a value that cannot be honoured."""


class BudgetTooSmall(ConfigError):
    """A memory budget is below the smallest one that works (`minimum_bytes`)."""

    def __init__(self, message: str, minimum_bytes: int) -> None:
        super().__init__(message)
        self.minimum_bytes = minimum_bytes


class CheckpointError(PgmoeError):
    """A model folder that cannot be served."""


class UnsupportedModel(CheckpointError):
    """The checkpoint is whole, but of a kind that this engine does not serve."""


class CorruptCheckpoint(CheckpointError):
    """The checkpoint is incomplete or damaged."""


class InvalidRequest(PgmoeError, ValueError):
    """The caller's own mistake; `param` names the field at fault, if one is."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class PromptTooLong(InvalidRequest):
    """Prompt and requested answer exceed the model's context."""


class ModelNotFound(PgmoeError):
    """A model name that nobody serves here."""


class EngineOverloaded(PgmoeError):
    """Too many requests wait already; try again after `retry_after_s` seconds."""

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class EngineClosed(PgmoeError):
    """The engine was shut down and takes no requests."""


class DeviceLost(EngineClosed):
    """The device has failed for good: the engine is of no use any more."""


class DeadlineExceeded(PgmoeError):
    """The request's own deadline passed before it was finished."""


class RequestCancelled(PgmoeError):
    """The request was given up before it was finished: by its caller, or on its way."""


class WeightReadError(PgmoeError):
    """Weights that are read while serving could not be had; the message names tensor and file."""


class ExpertReadError(WeightReadError):
    """The bytes of one expert could not be read; the message names expert and file."""


class NonFiniteLogits(PgmoeError):
    """The model computed NaN or infinity, from which no token can be chosen."""


class TrainingDiverged(PgmoeError):
    """The loss of a step is NaN or infinity, and no further step would be better."""


class GenerationFailed(PgmoeError):
    """Something unforeseen ended a request; it is the `__cause__`, and logged."""
