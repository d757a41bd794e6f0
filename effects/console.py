"""The readable log: on stderr, or in a file that is rotated, as text or as JSON. Source: Patroni, `log.*`.

The file is written by a thread of its own behind a queue with an end: a disk that hangs must not stop the agent, so
lines that find the queue full are counted and dropped. The transition log is something else, and needs none of this.
"""

import atexit
import json
import logging
import logging.handlers
import queue
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from effects.errors import ConfigError
from effects.settings_types import LogSettings

# The level starts at column 24, as tools that read Patroni's log expect.
FORMAT = "%(asctime)s %(levelname)s: %(message)s"
FILE_NAME = "patroni.log"
NOISY_LOGGERS = ("httpx", "httpcore", "asyncio", "uvicorn", "grpc", "transitions")
FIELD = re.compile(r"%\((\w+)\)")


class JsonFormatter(logging.Formatter):
    """Writes each record as one JSON object: fields of the record under their names or others, and fixed ones."""

    def __init__(self, names: Mapping[str, str], fixed: Mapping[str, Any], dateformat: str | None) -> None:
        """names: what to call each field of a record, by the field. fixed: what stands in each object besides."""
        super().__init__(datefmt=dateformat)
        self._names, self._fixed = dict(names), dict(fixed)

    def format(self, record: logging.LogRecord) -> str:
        """Returns one line."""
        record.message = record.getMessage()
        record.asctime = self.formatTime(record, self.datefmt)
        found = {shown: getattr(record, name, None) for name, shown in self._names.items()}
        if record.exc_info:
            found["exc_info"] = self.formatException(record.exc_info)
        return json.dumps(self._fixed | found, default=str, ensure_ascii=False)


class DroppingHandler(logging.handlers.QueueHandler):
    """Hands records to the thread that writes them; one that finds the queue full is counted in `lost`."""

    lost = 0
    writer: logging.handlers.QueueListener | None = None

    def enqueue(self, record: logging.LogRecord) -> None:
        """Queues the record, or drops it; never waits."""
        try:
            self.queue.put_nowait(record)
        except queue.Full:
            self.lost += 1


class RotatedFile(logging.handlers.RotatingFileHandler):
    """A log file with certain rights, followed by another one when it is full."""

    def __init__(self, path: Path, mode: int | None, bytes_max: int, older_max: int) -> None:
        """mode: the rights of each file; None leaves them to the process's umask."""
        self._mode = mode
        super().__init__(path, maxBytes=bytes_max, backupCount=older_max, encoding="utf-8")

    def _open(self) -> Any:
        file = super()._open()
        if self._mode is not None:
            Path(self.baseFilename).chmod(self._mode)
        return file


def set_up_console(settings: LogSettings) -> None:
    """Makes the root logger write as the settings say.

    Raises: ConfigError when the directory cannot be written to.
    """
    handler = _handler(settings)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.level)
    for name in NOISY_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
    for name, level in settings.loggers.items():
        logging.getLogger(name).setLevel(level)


def formatter_of(settings: LogSettings) -> logging.Formatter:
    """How a record becomes a line. Source: Patroni, `log.type`, `log.format`, `log.static_fields`."""
    if settings.type != "json":
        text = settings.format if isinstance(settings.format, str) else FORMAT
        return logging.Formatter(text, settings.dateformat)
    if isinstance(settings.format, tuple):
        names = dict(settings.format)
    else:
        names = {name: name for name in FIELD.findall(settings.format or FORMAT)}
    return JsonFormatter(names, settings.static_fields, settings.dateformat)


def _handler(settings: LogSettings) -> logging.Handler:
    if settings.dir is None:
        handler: logging.Handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(formatter_of(settings))
        return handler
    file = _file(settings, settings.dir)
    file.setFormatter(formatter_of(settings))
    front = DroppingHandler(queue.Queue(settings.max_queue_size))
    listener = logging.handlers.QueueListener(front.queue, file)
    listener.start()
    atexit.register(listener.stop)
    front.writer = listener
    return front


def close_console() -> None:
    """Writes what waits. `set_up_console` opens the log again."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, DroppingHandler) and handler.writer is not None:
            atexit.unregister(handler.writer.stop)
            handler.writer.stop()
        handler.flush()


def _file(settings: LogSettings, directory: Path) -> logging.Handler:
    path = directory / FILE_NAME
    try:
        directory.mkdir(parents=True, exist_ok=True)
        return RotatedFile(path, settings.mode, settings.file_size_bytes, settings.file_num)
    except OSError as error:
        remedy = "make it writable for the agent's user, or choose another directory"
        raise ConfigError([f"log.dir: {path} cannot be written: {error.strerror}; {remedy}"]) from None
