import json
from typing import Any

import pytest
from pydantic import ValidationError

from promoterd.control.protocol import (
    MAX_REQUEST,
    Request,
    error_to_message,
    line_to_request,
    message_to_error,
    path_to_text,
    request_to_line,
    text_to_path,
    to_line,
)
from promoterd.errors import Deferred, PromoterdError, Refused, TripWire, UnfitMount, UsageError

ODD = b"/mnt/new\nline \xff\xfe\x00".rstrip(b"\0") + "/grüße".encode()


@pytest.mark.parametrize("path", [ODD, b"/", b"/" + bytes(range(1, 256)), "/\udc41".encode("utf-8", "surrogatepass")])
def test_any_path_comes_through_as_ascii(path: bytes) -> None:
    line = request_to_line(Request(command="explain", path=path))
    assert line.isascii()
    assert line.count(b"\n") == 1
    assert line_to_request(line).path == path
    assert text_to_path(path_to_text(path)) == path


def test_the_longest_path_fits_into_the_longest_line() -> None:
    line = request_to_line(Request(command="promote", path=b"/" + b"\xff" * 4094, recursive=True))
    assert len(line) < MAX_REQUEST / 2


def test_the_request_on_the_wire_is_as_documented() -> None:
    request = Request(command="promote", path=b"/mnt/app/lib\xff", recursive=True)
    assert request_to_line(request) == (
        b'{"version": 1, "command": "promote", "path": "/mnt/app/lib\\udcff", "recursive": true}\n'
    )


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b"", "not a line of JSON"),
        (b"\xff\xfe", "not a line of JSON"),
        (b"[" * 60_000, "not a line of JSON"),
        (b"[1]", "not a JSON object"),
        (b"{}", "version 1 of the control protocol, the request has None"),
        (b'{"version": 2, "command": "status"}', "the request has 2"),
        (b'{"version": 1}', "command: Field required"),
        (b'{"version": 1, "command": "format"}', "command: Input should be 'status', 'top'"),
        (b'{"version": 1, "command": ["status"]}', "command: "),
        (b'{"version": 1, "command": "promote"}', "promote needs a path"),
        (b'{"version": 1, "command": "reopen"}', "reopen needs a path"),
        (b'{"version": 1, "command": "retire", "path": null}', "retire needs a path"),
        (b'{"version": 1, "command": "promote", "path": "lib"}', "path: Value error, a path must be absolute"),
        (b'{"version": 1, "command": "promote", "path": "/a\\u0000"}', "without NUL"),
        (b'{"version": 1, "command": "promote", "path": "/\\ud800"}', "path: "),
        (b'{"version": 1, "command": "promote", "path": 5}', "path: Input should be a valid bytes"),
        (b'{"version": 1, "command": "promote", "path": "/a", "recursive": "yes"}', "recursive: Input should be"),
        (b'{"version": 1, "command": "status", "recursive": true}', "status has no recursive"),
        (b'{"version": 1, "command": "status", "force": true}', "force: Extra inputs are not permitted"),
        (b'{"version": 1, "command": "promote", "path": "/' + b"a" * 4096 + b'"}', "shorter than 4096 bytes"),
    ],
)
def test_malformed_requests_are_usage_errors(line: bytes, complaint: str) -> None:
    with pytest.raises(UsageError) as caught:
        line_to_request(line)
    assert complaint in caught.value.message
    assert caught.value.exit_code == 2


def test_a_request_that_cannot_be_is_not_made() -> None:
    with pytest.raises(ValidationError, match="absolute"):
        Request(command="promote", path=b"relative")
    assert Request(command="reopen", all=True).path is None


@pytest.mark.parametrize(
    "error",
    [
        Refused(path="/lib", reason="growing"),
        UnfitMount(mountpoint="/mnt", backend="opaque", reason="userxattr"),
        TripWire(mountpoint="/mnt", reason="EIO"),
        Deferred("told otherwise"),
        PromoterdError("plain"),
        UsageError("with a hint", hint="do {this} {"),
    ],
)
def test_an_error_arrives_as_it_was_raised(error: PromoterdError) -> None:
    arrived = message_to_error(json.loads(to_line(error_to_message(error))))
    assert type(arrived) is type(error)
    assert (str(arrived), arrived.message, arrived.exit_code) == (str(error), error.message, error.exit_code)
    assert arrived.hint == error.hint or (not arrived.hint and not error.hint)


def test_an_error_of_a_newer_daemon_keeps_its_name_and_code() -> None:
    message = {"class": "MoonIsWrong", "message": "the {moon} is wrong", "hint": None, "exit_code": 42}
    arrived = message_to_error(message)
    assert isinstance(arrived, PromoterdError)
    assert (type(arrived).__name__, arrived.message, arrived.exit_code) == ("MoonIsWrong", "the {moon} is wrong", 42)


@pytest.mark.parametrize("value", [object(), {b"key": 1}, {1, 2}])
def test_what_json_cannot_hold_is_not_sent(value: Any) -> None:
    with pytest.raises(TypeError):
        to_line({"result": value})
