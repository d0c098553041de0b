"""What a client is told of what went wrong."""

from __future__ import annotations

import logging

from pgmoe.errors import DeadlineExceeded, GenerationFailed, InvalidRequest, PgmoeError

_logger = logging.getLogger(__name__)


def report(request_id: str, error: Exception) -> PgmoeError:
    """The error that ends a request; what is not the client's own doing is logged in full."""
    if isinstance(error, InvalidRequest | DeadlineExceeded):
        return error
    _logger.error("request %s failed", request_id, exc_info=error)
    if isinstance(error, PgmoeError):
        return error
    failed = GenerationFailed(f"the generation failed ({type(error).__name__}); the log has the details")
    failed.__cause__ = error
    return failed
