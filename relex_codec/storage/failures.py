"""Failures of storage: what exceptions of libraries carry, and which of them are transient.

Libraries raise what they like, so exceptions are told apart by what they carry: a status, a code of the storage, an
error of the operating system, or the name of their class. Importing the libraries to name the classes themselves would
cost more than most reads.
"""

from __future__ import annotations

import errno
from collections.abc import Container
from dataclasses import dataclass
from typing import Final

from relex_codec.errors import RelexError


class TransientError(Exception):
    """A failure that is known to be transient, such as an answer that ends early."""


@dataclass(frozen=True, slots=True)
class TransientFailures:
    """Which failures are transient, so that the same request may succeed a moment later.

    Attributes:
        statuses: of HTTP.
        error_codes: of S3, where the status alone does not say it.
        class_names: of exceptions, base classes included.
        lasting_class_names: those that never are, whatever they derive from or wrap.
        errnos: of the operating system.
    """

    statuses: frozenset[int] = frozenset({408, 425, 429, 500, 502, 503, 504})
    error_codes: frozenset[str] = frozenset({
        "InternalError", "OperationAborted", "RequestTimeout", "ServiceUnavailable", "SlowDown", "Throttling",
        "ThrottlingException", "TooManyRequests", "RequestLimitExceeded",
    })  # fmt: skip
    class_names: frozenset[str] = frozenset({
        # aiohttp
        "ClientConnectionError", "ClientPayloadError", "ClientOSError", "ServerTimeoutError", "ServerDisconnectedError",
        # botocore, aiobotocore
        "HTTPClientError", "ConnectionError", "IncompleteReadError", "ResponseStreamingError", "ReadTimeoutError",
        "FlexibleChecksumError",  # the body is not what its own header says
        "ResponseParserError",
        # azure-core
        "ServiceRequestError", "ServiceResponseError",
        # fsspec; requests and httpx, as gcsfs and huggingface_hub use them
        "FSTimeoutError", "ChunkedEncodingError", "TransportError", "IncompleteRead",
        "TimeoutError",  # of asyncio, which is the built-in one from Python 3.11 on
    })  # fmt: skip
    lasting_class_names: frozenset[str] = frozenset({
        "OfflineModeIsEnabled",  # a ConnectionError
        "SSLError", "ClientConnectorCertificateError", "ClientConnectorSSLError",
    })  # fmt: skip
    errnos: frozenset[int] = frozenset({
        errno.EBUSY, errno.EAGAIN, errno.ECONNRESET, errno.EPIPE, errno.ETIMEDOUT,
    })  # fmt: skip


TRANSIENT: Final = TransientFailures()


def unwrapped(e: BaseException, known: TransientFailures = TRANSIENT) -> BaseException:
    """Return the transient failure that an exception hides, or the exception itself.

    Before 2025, fsspec says of a web address that it does not exist, whatever the server did, and names the cause.
    """
    if type(e) is FileNotFoundError and e.errno is None and e.__cause__ and is_transient(e.__cause__, known):
        return e.__cause__
    return e


def is_transient(e: BaseException, known: TransientFailures = TRANSIENT) -> bool:
    """Tell whether the same request may succeed a moment later."""
    e = unwrapped(e, known)
    if isinstance(e, TransientError):
        return True
    if isinstance(e, RelexError | FileNotFoundError | PermissionError) or _is_named(e, known.lasting_class_names):
        return False
    inner = getattr(e, "inner_exception", None)  # of azure-core
    if inner is not None and _is_named(inner, known.lasting_class_names):
        return False
    if code_of(e) in known.error_codes or _is_named(e, known.class_names):
        return True
    status = status_of(e)
    if status is not None:
        return status in known.statuses
    return isinstance(e, ConnectionError | TimeoutError) or (isinstance(e, OSError) and e.errno in known.errnos)


def status_of(e: BaseException | None) -> int | None:
    """Return the HTTP status that an exception of a library carries, or None."""
    while e is not None:
        response = getattr(e, "response", None)
        if isinstance(response, dict):  # botocore
            found = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        else:
            found = getattr(e, "status", None) or getattr(response, "status_code", None) or getattr(e, "code", None)
        if isinstance(found, int) and 100 <= found < 600:
            return found
        e = e.__cause__
    return None


def is_refused_condition(e: BaseException) -> bool:
    """Tell whether an upload was refused because the object is not the one that it was to replace."""
    return isinstance(e, FileExistsError) or status_of(e) in (409, 412)


def code_of(e: BaseException | None) -> str:
    """Return the error code of S3 or Azure that an exception carries, or an empty text."""
    while e is not None:
        response = getattr(e, "response", None)
        own = getattr(e, "error_code", None)
        if own:
            return str(getattr(own, "value", own))
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
        e = e.__cause__
    return ""


def _is_named(e: BaseException, names: Container[str]) -> bool:
    return any(c.__name__ in names for c in type(e).__mro__)
