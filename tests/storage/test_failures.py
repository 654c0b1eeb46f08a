"""Failures of libraries: which are transient, what messages say of them, and how requests are made again."""

from __future__ import annotations

import errno
import random

import pytest

from relex_codec.core.cancellation import Cancelled, CancelScope
from relex_codec.errors import CheckpointError, Corrupt, InvalidArgument, MissingCheckpoint
from relex_codec.storage.explain import read_error
from relex_codec.storage.failures import TransientError, TransientFailures, is_transient
from relex_codec.storage.retry import RetriesExhausted, RetryPolicy, call_with_retries
from relex_codec.storage.stores.base import RequestRefused
from support.clock import count_attempts_as_seconds


class Answered(Exception):
    def __init__(self, status: int) -> None:
        self.status = status


class Botocore(Exception):
    def __init__(self, code: str, status: int) -> None:
        self.response = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}


class NoCredentialsError(Exception):
    pass


class NoRegionError(Exception):
    pass


class ServiceRequestError(Exception):
    """As of azure-core, which has it for whatever keeps a request from being sent."""

    def __init__(self, inner: Exception) -> None:
        self.inner_exception = inner


class ClientAuthenticationError(Exception):
    """As of azure-core: what answered, if anything, is `response`."""

    def __init__(self, status: int | None) -> None:
        super().__init__("no\ntoken")
        self.response = None if status is None else type("Response", (), {"status_code": status})()


class ClientConnectorCertificateError(OSError):
    pass


def caused(e: OSError, cause: Exception) -> OSError:
    e.__cause__ = cause
    return e


@pytest.mark.parametrize(
    ("e", "expected"),
    [
        (ConnectionResetError(), True), (TimeoutError(), True), (OSError(errno.EBUSY, "busy"), True),
        (Answered(503), True), (Answered(429), True), (Answered(400), False), (Answered(401), False),
        (Botocore("SlowDown", 503), True), (Botocore("RequestTimeout", 400), True), (Botocore("NoSuchKey", 404), False),
        (caused(OSError(errno.EINVAL, "x"), Botocore("InternalError", 500)), True),
        (caused(OSError(errno.EINVAL, "x"), Botocore("InvalidRequest", 400)), False),
        (FileNotFoundError(), False), (PermissionError(), False), (Corrupt("x"), False), (ValueError(), False),
        (RequestRefused(503), True), (RequestRefused(408, "x", "OperationTimedOut"), True),
        (RequestRefused(403), False),
        (ServiceRequestError(OSError()), True), (ServiceRequestError(ClientConnectorCertificateError()), False),
        (ClientAuthenticationError(None), False), (ClientAuthenticationError(403), False),
        (NoCredentialsError(), False), (OSError(errno.EIO, "disk"), False), (TransientError(), True),
    ],
)  # fmt: skip
def test_what_passes(e: Exception, expected: bool) -> None:
    assert is_transient(e) is expected


@pytest.mark.parametrize(
    ("e", "message"),
    [
        (NoCredentialsError("none"), "p cannot be read: no credentials were found; set those of the storage"),
        (ClientAuthenticationError(None), "no credentials were found; set those of the storage in the environment (AZ"),
        (ClientAuthenticationError(403), "no token; check permissions or credentials"),
        (
            RequestRefused(403, "no right to\nRequestId:1", "x"),
            "the server answered 403 no right to; check permissions",
        ),
        (RequestRefused(404, "", "ContainerNotFound"), "there is no such container; check its name"),
        (RequestRefused(401, "x", "NoGoogleCredentials"), "in the environment (GOOGLE_APPLICATION_CREDENTIALS) or"),
        (ValueError("give a connection_string or account_name"), "no storage account is named; set AZURE_STORAGE_ACC"),
        (NoRegionError("none"), "p cannot be read: no region is set; set AWS_DEFAULT_REGION"),
        (Botocore("NoSuchBucket", 404), "p cannot be read: there is no such bucket; check its name"),
        (caused(OSError(errno.EINVAL, "x"), Botocore("PermanentRedirect", 301)), "set the bucket's region"),
        (Answered(403), "check permissions or credentials"),
        (Answered(404), "p does not exist; check the path"),
        (Answered(503), "try again later, or for longer with RELEX_RETRY_SECONDS"),
        (NotADirectoryError(), "p is not a directory"),
        (ValueError("what\nis this"), "p cannot be read: ValueError: what is this"),
    ],
)
def test_what_is_said(e: Exception, message: str) -> None:
    found = read_error("p", e, CheckpointError)
    is_missing = "does not exist" in message or "there is no such" in message
    assert type(found) is (MissingCheckpoint if is_missing else CheckpointError)
    assert message in str(found) and "\n" not in str(found)


def test_trying_again(monkeypatch: pytest.MonkeyPatch) -> None:
    left = [ConnectionResetError(), Answered(503), None]

    def attempt() -> str:
        failure = left.pop(0)
        if failure:
            raise failure
        return "done"

    assert call_with_retries(attempt, RetryPolicy(max_seconds=60)) == "done"
    left[:] = [ConnectionResetError()] * 1000
    with monkeypatch.context() as patch:
        count_attempts_as_seconds(patch)
        with pytest.raises(RetriesExhausted, match="4 attempts in 4 s") as caught:
            call_with_retries(attempt, RetryPolicy(max_seconds=4))
    assert isinstance(caught.value.__cause__, ConnectionResetError)
    assert "4 attempts in 4 s" in str(read_error("p", caught.value, CheckpointError))
    assert len(left) == 996
    left[:] = [ValueError("not this"), None]
    with pytest.raises(ValueError, match="not this"):
        call_with_retries(attempt, RetryPolicy(max_seconds=60))
    assert len(left) == 1
    scope = CancelScope()
    scope.cancel()
    left[:] = [ConnectionResetError()] * 2
    with pytest.raises(Cancelled):
        scope.bind(call_with_retries)(attempt, RetryPolicy(max_seconds=60))
    assert len(left) == 1


def test_trying_again_leaves_the_generator_of_the_program_alone() -> None:
    """A training run seeds it; and other threads of a program would change it at moments of their own."""
    random.seed(5)
    before = random.getstate()
    left = [ConnectionResetError(), ConnectionResetError()]

    def attempt() -> str:
        if left:
            raise left.pop()
        return "done"

    assert call_with_retries(attempt, RetryPolicy()) == "done"
    assert random.getstate() == before


def test_waits_between_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("relex_codec.storage.retry.pause", waits.append)
    monkeypatch.setattr("relex_codec.storage.retry._JITTER.uniform", lambda least, most: most)
    left = [ConnectionResetError()] * 6

    def attempt() -> str:
        if left:
            raise left.pop()
        return "done"

    assert call_with_retries(attempt, RetryPolicy(60, first_wait=1, longest_wait=20, growth=3)) == "done"
    assert waits == [1, 3, 9, 20, 20, 20]


def test_what_is_transient_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    count_attempts_as_seconds(monkeypatch)
    attempts = []

    def attempt() -> None:
        attempts.append(1)
        raise RequestRefused(418)

    with pytest.raises(RequestRefused):
        call_with_retries(attempt, RetryPolicy(3))
    assert len(attempts) == 1
    policy = RetryPolicy(3, transient=TransientFailures(statuses=frozenset({418})))
    with pytest.raises(RetriesExhausted):
        call_with_retries(attempt, policy)
    assert len(attempts) == 1 + 3


def test_what_older_releases_of_fsspec_hide() -> None:
    """They say of a web address that it does not exist, whatever happened; causes are told apart."""

    def raised(cause: BaseException | None) -> FileNotFoundError:
        error = FileNotFoundError("http://host/x")
        error.__cause__ = cause
        return error

    hidden = raised(ConnectionResetError(errno.ECONNRESET, "reset"))
    assert is_transient(hidden)
    assert "x cannot be read: " in str(read_error("x", hidden, InvalidArgument))
    assert "try again later" in str(read_error("x", hidden, InvalidArgument))
    for missing in (raised(None), raised(ValueError("404")), FileNotFoundError(errno.ENOENT, "no such file", "x")):
        assert not is_transient(missing)
        assert "x does not exist" in str(read_error("x", missing, InvalidArgument))
