"""Where the command line begins and ends: whatever happens becomes one message, a way out and an exit code."""

import os
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from typing import NoReturn

import typer

from promoterd.cli.app import app
from promoterd.cli.output import OutputClosed, say_json, warn
from promoterd.errors import InternalError, Interrupted, NotPermitted, PromoterdError, UsageError
from promoterd.paths import display

CLOSED = 141
"""What a shell reports for a program that SIGPIPE ended."""
_SOON = 0.01
# typer carries click along since 0.26, and needed the package before: the base class is found on what typer exports
_TyperUsageError = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "UsageError")


def enter() -> NoReturn:
    """Run what the arguments say, and end the process."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by whoever started us
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - it lives as long as the process
        else:
            stream.reconfigure(errors="backslashreplace")
    sys.unraisablehook = _interrupt_after
    code = execute(sys.argv[1:])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is decided how this ends
    sys.exit(code)


def _interrupt_after(unraisable: "sys.UnraisableHookArgs") -> None:
    """A Ctrl-C that fell where nothing can be raised, as into what the import system leaves behind, comes once more."""
    if not isinstance(unraisable.exc_value, KeyboardInterrupt):
        sys.__unraisablehook__(unraisable)
        return
    again = threading.Timer(_SOON, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT))
    again.daemon = True
    again.start()


def execute(arguments: Sequence[str]) -> int:
    """Run one command; its exit code."""
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    as_json = "--json" in options
    command = next((argument for argument in options if not argument.startswith("-")), "")
    try:
        done = typer.main.get_command(app).main(list(arguments), prog_name="promoterd", standalone_mode=False)
    except OutputClosed:
        _detach_stdout()
        return CLOSED
    except BaseException as error:  # noqa: BLE001 - no traceback reaches a user
        return _report(error, command, as_json=as_json)
    if done == Interrupted.exit_code:
        return _report(KeyboardInterrupt(), command, as_json=as_json)
    return done if isinstance(done, int) else 0


def _report(error: BaseException, command: str, *, as_json: bool) -> int:
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    if os.environ.get("PROMOTERD_DEBUG"):
        warn("".join(traceback.format_exception(error)).rstrip())
    problem = explain(error)
    code = _code_of(problem, command)
    if as_json:
        from promoterd.control.protocol import error_to_message

        try:
            say_json({"error": {**error_to_message(problem), "exit_code": code}})
        except (OutputClosed, PromoterdError):
            _detach_stdout()
    else:
        lines = problem.message.split("\n")
        warn(
            f"promoterd: {lines[0]}" if len(lines) == 1 else "\n  ".join([f"promoterd: {len(lines)} mistakes", *lines])
        )
        if problem.hint:
            warn(f"  way out: {problem.hint}")
    return code


def _code_of(problem: PromoterdError, command: str) -> int:
    """The error's own, but for ``fsck``, whose codes are those of its kind."""
    if command != "fsck":
        return problem.exit_code
    from promoterd.fsck.findings import exit_code_of

    return exit_code_of(problem)


def explain(error: BaseException) -> PromoterdError:
    """An error of ours for whatever was raised."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, PromoterdError):
        return error
    if _is_interrupt(error):
        return Interrupted(what="stopped by the user")
    if isinstance(error, _TyperUsageError):
        return _usage(error)
    if isinstance(error, typer.Abort):
        return Interrupted(what="no input")
    if isinstance(error, OSError) and error.errno is not None:
        return _system(error)
    return InternalError(what=" ".join(f"{type(error).__name__}: {error}".split()))


def _is_interrupt(error: BaseException | None) -> bool:
    """Whether a Ctrl-C is behind it: of one that fell into the building of a model, pydantic keeps the name alone."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        if type(error).__name__ == "SchemaError" and KeyboardInterrupt.__name__ in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _usage(error: BaseException) -> UsageError:
    format_message = getattr(error, "format_message", error.__str__)
    possible = getattr(error, "possibilities", None)
    message = getattr(error, "message", str(error)) if possible else format_message()
    command = getattr(getattr(error, "ctx", None), "command_path", "promoterd")
    hint = f"`{command} --help` lists what it takes"
    if possible:
        hint = f"did you mean {' or '.join(sorted(possible))}? {hint}"
    return UsageError(_printable(message), hint=hint)


def _system(error: OSError) -> PromoterdError:
    """What the kernel refused, and on what."""
    where = next((name for name in (error.filename, error.filename2) if isinstance(name, str | bytes)), None)
    text = error.strerror or type(error).__name__
    text = f"{display(os.fsencode(where))}: {text}" if where is not None else text
    if isinstance(error, PermissionError) and os.geteuid() != 0:
        return NotPermitted(text, hint="run it as root")
    return PromoterdError(text)


def _printable(text: str) -> str:
    return display(text.encode("utf-8", "surrogateescape"))


def _detach_stdout() -> None:
    """What is still buffered goes nowhere, so that the interpreter does not complain about it at the end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
