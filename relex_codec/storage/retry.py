"""Failures of storage: which of them pass, trying again until they do, and what to say of those that do not.

Backends raise what they like, so exceptions are told apart by what they carry: a status, a system error, or a name.
"""

from __future__ import annotations

import errno
import random
import time
from collections.abc import Callable, Container
from typing import Final, TypeVar

from relex_codec.core.cancellation import pause
from relex_codec.core.text import one_line
from relex_codec.errors import RelexError, missing

T = TypeVar("T")

PASSING_STATUS: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
PASSING_CODES: Final = frozenset({
    "InternalError", "OperationAborted", "RequestTimeout", "ServiceUnavailable", "SlowDown", "Throttling",
    "ThrottlingException", "TooManyRequests", "RequestLimitExceeded",
})  # fmt: skip
"""Error codes of S3 that pass."""
PASSING_NAMES: Final = frozenset({
    # aiohttp
    "ClientConnectionError", "ClientPayloadError", "ClientOSError", "ServerTimeoutError", "ServerDisconnectedError",
    # botocore, aiobotocore
    "HTTPClientError", "ConnectionError", "IncompleteReadError", "ResponseStreamingError", "ReadTimeoutError",
    "ResponseParserError",
    # azure-core
    "ServiceRequestError", "ServiceResponseError",
    # fsspec; requests and httpx, as gcsfs and huggingface_hub use them
    "FSTimeoutError", "ChunkedEncodingError", "TransportError", "IncompleteRead",
    "TimeoutError",  # of asyncio, which is the built-in one from Python 3.11 on
})  # fmt: skip
"""Classes of exceptions that pass, by name: importing the libraries to name them would cost more than most reads."""
LASTING_NAMES: Final = frozenset({
    "OfflineModeIsEnabled",  # a ConnectionError
    "SSLError", "ClientConnectorCertificateError", "ClientConnectorSSLError",
})  # fmt: skip
PASSING_ERRNO: Final = frozenset({errno.EBUSY, errno.EAGAIN, errno.ECONNRESET, errno.EPIPE, errno.ETIMEDOUT})
NO_CREDENTIALS: Final = {
    "NoCredentialsError": "(AWS_ACCESS_KEY_ID, AWS_PROFILE, ...) or in storage_options, or {'anon': True}",
    "NoGoogleCredentials": "(GOOGLE_APPLICATION_CREDENTIALS) or in storage_options (token), or {'token': 'anon'}",
    "ClientAuthenticationError": "(AZURE_STORAGE_ACCOUNT_KEY, AZURE_STORAGE_SAS_TOKEN, ...) or in storage_options, or "
    "{'anon': True}",
}
"""Where credentials are looked for, and what does without; by what says that there are none, a class or a code."""
FIRST_WAIT: Final = 0.1
LONGEST_WAIT: Final = 8.0


class Passing(Exception):
    """A failure that is known to pass, such as an answer that ends early."""


class GaveUp(Exception):
    """Trying again did not help; the cause is the last failure."""

    def __init__(self, attempts: int, seconds: float) -> None:
        super().__init__(f"{attempts} attempts in {seconds:.0f} s")


def status_of(e: BaseException | None) -> int | None:
    """Return the HTTP status that an exception of a backend stands for, if it tells."""
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


def passes(e: BaseException) -> bool:
    """Tell whether trying again may help."""
    if isinstance(e, Passing):
        return True
    if isinstance(e, RelexError | FileNotFoundError | PermissionError) or _is(e, LASTING_NAMES):
        return False
    inner = getattr(e, "inner_exception", None)  # of azure-core
    if inner is not None and _is(inner, LASTING_NAMES):
        return False
    if code_of(e) in PASSING_CODES or _is(e, PASSING_NAMES):
        return True
    status = status_of(e)
    if status is not None:
        return status in PASSING_STATUS
    return isinstance(e, ConnectionError | TimeoutError) or (isinstance(e, OSError) and e.errno in PASSING_ERRNO)


def _is(e: BaseException, names: Container[str]) -> bool:
    return any(c.__name__ in names for c in type(e).__mro__)


def until_it_passes(attempt: Callable[[], T], seconds: float) -> T:
    """Return what `attempt` returns, trying again after failures that pass, for so many seconds.

    Waits grow twofold from 0.1 s to 8 s, each drawn anew between 0 and that ("full jitter"), so that many readers do
    not come back at the same moment.

    Raises:
        GaveUp: it did not pass in that time.
        Stopped: nobody waits for it any more.
        Exception: what the first attempt raised, if it does not pass or there is no time for another.
    """
    began = time.monotonic()
    attempts, wait = 0, FIRST_WAIT
    while True:
        attempts += 1
        try:
            return attempt()
        except Exception as e:
            before_next = random.uniform(0, wait)
            spent = time.monotonic() - began
            if not passes(e) or spent + before_next > seconds:
                if attempts > 1 and not isinstance(e, RelexError):
                    raise GaveUp(attempts, spent) from e
                raise
        pause(before_next)
        wait = min(2 * wait, LONGEST_WAIT)


def unreadable(path: str, e: BaseException, error: type[RelexError]) -> RelexError:
    """Return the one-line `error` for a failed read of `path`, with what to do about it.

    Errors of this package stay what they are.
    """
    tried = f" ({e})" if isinstance(e, GaveUp) else ""
    if isinstance(e, GaveUp) and e.__cause__ is not None:
        e = e.__cause__
    if isinstance(e, RelexError):
        return e
    words, code, status = said(e), code_of(e), status_of(e)
    if code in ("NoSuchBucket", "ContainerNotFound"):
        what = "bucket" if code == "NoSuchBucket" else "container"
        return missing(error, f"{path} cannot be read: there is no such {what}; check its name, and the endpoint")
    found = [code, *(() if status else (c.__name__ for c in type(e).__mro__))]
    places = next((NO_CREDENTIALS[known] for known in found if known in NO_CREDENTIALS), None)
    if places:
        return error(
            f"{path} cannot be read: no credentials were found; set those of the storage in the environment {places} "
            "for a public bucket"
        )
    if "connection_string or account_name" in words:  # adlfs
        return error(
            f"{path} cannot be read: no storage account is named; set AZURE_STORAGE_ACCOUNT_NAME, or account_name in "
            "storage_options"
        )
    if type(e).__name__ == "NoRegionError":
        return error(f"{path} cannot be read: no region is set; set AWS_DEFAULT_REGION")
    if code in ("PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"):
        return error(f"{path} cannot be read: {words}; set the bucket's region (AWS_DEFAULT_REGION) and endpoint")
    if isinstance(e, FileNotFoundError) or status == 404:
        return missing(error, f"{path} does not exist; check the path")
    if isinstance(e, NotADirectoryError):
        return error(f"{path} is not a directory")
    if isinstance(e, PermissionError) or status in (401, 403):
        return error(f"{path} cannot be read: {words}; check permissions or credentials")
    hint = "; try again later, or for longer with RELEX_RETRY_SECONDS" if passes(e) else ""
    return error(f"{path} cannot be read: {words}{tried}{hint}")


def said(e: BaseException) -> str:
    """Return what an exception says, on one line; not the URL that aiohttp adds, which may be a signed one."""
    status = status_of(e)
    if status is not None and (type(e).__name__ == "ClientResponseError" or hasattr(e, "error_code")):
        words = str(getattr(e, "message", "")).partition("\n")[0]  # Azure goes on with what is only of use to Azure
        return " ".join(f"the server answered {status} {words:.300}".split())
    return one_line(e)
