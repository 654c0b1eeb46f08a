"""One-line messages for what libraries and the operating system raise: what happened, and what to do about it."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from typing import Final
from urllib.parse import urlsplit

from relex_codec.core.text import one_line
from relex_codec.errors import InvalidArgument, RelexError, missing

from .failures import code_of, is_transient, status_of, unwrapped
from .hub.paths import Model, parse_model_url
from .retry import RetriesExhausted
from .urls import PathLike

NO_CREDENTIALS: Final = {
    "NoCredentialsError": "(AWS_ACCESS_KEY_ID, AWS_PROFILE, ...) or in storage_options, or {'anon': True}",
    "NoGoogleCredentials": "(GOOGLE_APPLICATION_CREDENTIALS) or in storage_options (token), or {'token': 'anon'}",
    "ClientAuthenticationError": "(AZURE_STORAGE_ACCOUNT_KEY, AZURE_STORAGE_SAS_TOKEN, ...) or in storage_options, or "
    "{'anon': True}",
}
"""Where credentials are looked for, and what does without; by what says that there are none, a class or a code."""
_HUB_CLASSES: Final = frozenset({
    "GatedRepoError", "RepositoryNotFoundError", "RevisionNotFoundError", "HFValidationError", "OfflineModeIsEnabled",
    "ConnectError", "ConnectTimeout",
})  # fmt: skip
"""Classes of failures that `explain_hub_failure` says more of than they do themselves."""
SHORTAGES: Final = {
    errno.EMFILE: "; allow more open files (`ulimit -n 4096`)",
    errno.ENFILE: "; the whole machine has too many files open",
    errno.ENOMEM: "; there is not enough memory",
}
"""What is said of what the machine has not enough of."""
_LOG_IN: Final = "log in with `hf auth login` or set HF_TOKEN"


def message_of(e: BaseException) -> str:
    """Return what an exception says, on one line; not the URL that aiohttp adds, which may be a signed one."""
    status = status_of(e)
    if status is not None and (type(e).__name__ == "ClientResponseError" or hasattr(e, "error_code")):
        words = str(getattr(e, "message", "")).partition("\n")[0]  # Azure goes on with what is only of use to Azure
        return " ".join(f"the server answered {status} {words:.300}".split())
    return one_line(e)


def read_error(path: str, e: BaseException, error: type[RelexError]) -> RelexError:
    """Return the one-line `error` for a failed read of `path`, with what to do about it.

    Errors of this package stay what they are, and what the machine lacks is no fault of the file: `InvalidArgument`.
    """
    tried = f" ({e})" if isinstance(e, RetriesExhausted) else ""
    if isinstance(e, RetriesExhausted) and e.__cause__ is not None:
        e = e.__cause__
    e = unwrapped(e)
    if isinstance(e, RelexError):
        return e
    words, code, status = message_of(e), code_of(e), status_of(e)
    if isinstance(e, OSError) and e.errno in SHORTAGES:  # nothing is wrong with the file
        return InvalidArgument(f"{path} cannot be read: {words}{SHORTAGES[e.errno]}")
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
    hint = "; try again later, or for longer with RELEX_RETRY_SECONDS" if is_transient(e) else ""
    return error(f"{path} cannot be read: {words}{tried}{hint}")


def changed_error(path: str, error: type[RelexError]) -> RelexError:
    """Return the error for a file that is no longer the one that was opened."""
    return error(f"{path} changed while it was being read; read it again when nothing writes it")


def write_error(path: str, e: OSError) -> InvalidArgument:
    """Return the error for a failed write to the local `path`."""
    hint = ""
    if e.errno == errno.ENOENT:
        hint = "; its directory does not exist, make it first"
    elif e.errno in SHORTAGES:
        hint = SHORTAGES[e.errno]
    elif e.errno in (errno.ENOSPC, errno.EDQUOT):
        hint = "; free some space or choose another place"
    return InvalidArgument(f"cannot write {path}: {one_line(e)}{hint}; nothing was changed there")


def upload_error(url: str, e: Exception) -> InvalidArgument:
    """Return the error for a failed upload to `url`."""
    hint, status = "", status_of(e)
    if isinstance(e, FileNotFoundError) or status == 404:
        hint = "; check that the bucket or directory exists"
    elif (
        isinstance(e, PermissionError)
        or status in (401, 403)
        or "Credential" in type(e).__name__
        or str(e).startswith("Forbidden")  # as gcsfs has it
    ):
        hint = "; check the credentials and what they allow"
    return InvalidArgument(f"cannot write {url}: {message_of(e)}{hint}")


def explain_read_from_hub(path: PathLike, e: BaseException | None) -> str | None:
    """Return what a failed read of `path` means and what to do, where the Hub says it; None: there is no more to say.

    That takes no request: the Hub gives its reasons with each refusal.
    """
    model = parse_model_url(path)
    if model is None or not isinstance(e, Exception) or _HUB_CLASSES.isdisjoint(c.__name__ for c in type(e).__mro__):
        return None
    return explain_hub_failure(os.fspath(path), model, e)


def explain_hub_failure(url: str, model: Model, e: Exception, endpoint: str | None = None) -> str:
    """Return what an exception of huggingface_hub about `url` means and what to do, in one line."""
    from huggingface_hub import errors

    if isinstance(e, errors.GatedRepoError):
        page = f"{endpoint or _hub_of(e)}/{model.repo}"
        return f"{url} is gated: accept its terms at {page}, then {_LOG_IN}"
    if isinstance(e, errors.RepositoryNotFoundError):
        return f"{url} cannot be read: no repository {model.repo}, or it is private; check the name, or {_LOG_IN}"
    if isinstance(e, errors.RevisionNotFoundError):
        return f"{url} cannot be read: {model.repo} has no revision {model.revision!r}; check its name"
    if isinstance(e, ValueError) and not isinstance(e, errors.HfHubHTTPError):
        return f"{url} cannot be read: {one_line(e)}; expected hf://org/name[@revision]"
    revision = f" --revision {model.revision}" if model.revision else ""
    download = f"download it first (`hf download {model.repo}{revision}`), or give a local path"
    if isinstance(e, errors.OfflineModeIsEnabled):
        return f"{url} is not completely in the local cache, and HF_HUB_OFFLINE is set: unset it, {download}"
    if is_answer_of_hub(e) or isinstance(e, errors.HfHubHTTPError):
        return f"{url} cannot be read: {one_line(e)}"
    hub = endpoint or _hub_of(e)
    return f"{url} is not completely in the local cache, and {hub} is not reached ({one_line(e)}): {download}"


def is_answer_of_hub(e: Exception) -> bool:
    """Tell whether the Hub itself said so, and not what lies on the way: then its local cache is not asked instead."""
    from huggingface_hub import errors

    if isinstance(e, errors.HfHubHTTPError):
        return e.response is None or e.response.status_code < 500
    return isinstance(e, ValueError)


def _hub_of(e: Exception) -> str:
    """Return the Hub that an exception is about, as far as it tells."""
    from huggingface_hub import constants

    for carrier in ("response", "request"):
        with suppress(Exception):  # some clients raise where there is none
            parts = urlsplit(str(getattr(e, carrier).url))
            if parts.scheme and parts.netloc:
                return f"{parts.scheme}://{parts.netloc}"
    return str(constants.ENDPOINT)
