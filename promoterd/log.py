"""Log events: one line for each thing that happened, as JSON for the journal or as text for a terminal.

An event is a short name in snake case with fields beside it: ``mount``, ``path`` and ``reason`` where they apply.
Values may be anything: bytes are shown as :func:`promoterd.paths.display` shows a path, and nothing that is logged can
break the line it stands on, or raise.
"""

import logging
import os
import sys
from collections.abc import Iterable, Mapping
from enum import Enum
from functools import singledispatch
from typing import Any, Literal, TextIO, cast, get_args

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

from promoterd.errors import UsageError
from promoterd.paths import display

Format = Literal["auto", "json", "console"]
Level = Literal["debug", "info", "warning", "error"]

_ORDER = ("timestamp", "level", "event", "mount", "path", "reason")
_LATER = frozenset({"exc_info", "stack_info", "_record"})
"""What later steps need as it is."""
_SYSLOG = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}


def get_logger(name: str) -> FilteringBoundLogger:
    """The logger of a module: ``log.info("directory_complete", mount=mountpoint, path=path, entries=500)``."""
    return cast("FilteringBoundLogger", structlog.get_logger(name))


def configure(format: Format = "auto", level: Level = "info", stream: TextIO | None = None) -> None:  # noqa: A002 - the policy's word
    """Send all events, and what libraries log, to ``stream`` (standard error).

    ``auto`` writes text on a terminal and JSON anywhere else. On a stream that is the journal each line begins with its
    priority (sd-daemon(3)), which the journal takes off again. Raises UsageError for an unknown format or level.
    """
    for what, value, known in (("format", format, get_args(Format)), ("level", level, get_args(Level))):
        if value not in known:
            raise UsageError(f"unknown log {what} {value!r}", hint=f"one of {', '.join(known)}")
    target = sys.stderr if stream is None else stream
    as_text = format == "console" or (format == "auto" and target.isatty())
    number = getattr(logging, level.upper())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _readable,
    ]
    renderers = _text_renderers(target) if as_text else _json_renderers()
    handler = logging.StreamHandler(target)
    handler.setFormatter(
        _Formatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers],
            with_priority=not as_text and _is_journal(target),
        )
    )
    _own_root(handler, number)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )


def _text_renderers(target: TextIO) -> list[Processor]:
    plain = structlog.dev.plain_traceback
    renderer = structlog.dev.ConsoleRenderer(colors=target.isatty(), exception_formatter=plain, sort_keys=False)
    return [_ordered, renderer]


def _json_renderers() -> list[Processor]:
    return [structlog.processors.format_exc_info, _ordered, structlog.processors.JSONRenderer(default=repr)]


class _Formatter(structlog.stdlib.ProcessorFormatter):
    def __init__(self, *, with_priority: bool, **others: Any) -> None:
        super().__init__(**others)
        self._with_priority = with_priority

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        return f"<{_SYSLOG.get(record.levelno, 6)}>{line}" if self._with_priority else line


def _own_root(handler: logging.Handler, level: int) -> None:
    """Make ours the only handler that we or a library have added: pyinotify adds one of its own to its logger."""
    root = logging.getLogger()
    for name in list(root.manager.loggerDict):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    for other in list(root.handlers):
        if isinstance(other.formatter, _Formatter):
            root.removeHandler(other)
    root.addHandler(handler)
    root.setLevel(level)
    logging.captureWarnings(capture=True)


def _is_journal(stream: TextIO) -> bool:
    """Whether systemd connected the stream to the journal: JOURNAL_STREAM is its device and inode (systemd.exec(5))."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def _ordered(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    return {key: event[key] for key in (*_ORDER, *event) if key in event}


def _readable(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    return {str(key): value if key in _LATER else _plain(value) for key, value in event.items()}


def _plain(value: object) -> object:
    """A value as JSON knows it, every text in it on one line and printable."""
    try:
        return _convert(value)
    except Exception:  # noqa: BLE001 - a value that cannot be shown must not cost the event
        return f"<{type(value).__name__}>"


@singledispatch
def _convert(value: object) -> object:
    return _text(repr(value))


@_convert.register
def _text(value: str) -> str:
    try:
        return display(value.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:  # a surrogate that stands for no byte
        return display(value.encode("utf-8", "backslashreplace"))


@_convert.register
def _bytes(value: bytes) -> str:
    return display(value)


@_convert.register(int | float | type(None))
def _number(value: float | None) -> float | None:
    return value


@_convert.register(BaseException | os.PathLike)
def _named(value: object) -> str:
    return _text(str(value))


@_convert.register
def _enum(value: Enum) -> object:
    return _plain(value.value)


@_convert.register(Mapping)
def _mapping(value: Mapping[Any, Any]) -> dict[str, object]:
    return {str(_plain(key)): _plain(item) for key, item in value.items()}


@_convert.register(list | tuple | set | frozenset)
def _sequence(value: Iterable[object]) -> list[object]:
    return [_plain(item) for item in value]
