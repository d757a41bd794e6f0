"""The readable log as `log.*` asks for it: text or JSON, on stderr or in files that are rotated."""

import json
import logging
import queue
import subprocess
import sys
from pathlib import Path

import pytest

from effects.console import FORMAT, DroppingHandler, formatter_of
from effects.settings import load
from effects.settings_types import LogSettings
from tests.effects.test_settings import ENVIRONMENT, complete

PROGRAM = """
import logging, sys
from pathlib import Path
from effects.console import set_up_console
from effects.settings import load
set_up_console(load(Path(sys.argv[1]), {}).log)
for number in range(40):
    logging.getLogger("effects.some").info("line %d", number)
logging.getLogger("effects.other").info("not shown")
"""


def record(message: str = "it is %s", *args: object) -> logging.LogRecord:
    """One record."""
    return logging.LogRecord("effects.x", logging.WARNING, "x.py", 7, message, args or ("so",), None)


def test_line_has_its_level_at_column_24_when_nothing_is_set() -> None:
    """Tools that read Patroni's log look for it there."""
    line = formatter_of(LogSettings()).format(record())
    assert line[24:] == "WARNING: it is so"


def test_line_has_the_form_that_is_set_when_there_is_one() -> None:
    """Format and format of the date."""
    found = formatter_of(LogSettings(format="%(asctime)s|%(name)s|%(message)s", dateformat="%Y"))
    year, rest = found.format(record()).split("|", 1)
    assert (len(year), rest) == (4, "effects.x|it is so")


def test_line_is_an_object_when_the_type_is_json(tmp_path: Path) -> None:
    """Fields by name, under another name, and fixed ones."""
    extra = "log:\n  type: json\n  format: [message, {levelname: severity}]\n  static_fields: {app: db, zone: 7}\n"
    settings = load(complete(tmp_path, extra), {}).log
    assert json.loads(formatter_of(settings).format(record())) == {
        "app": "db",
        "zone": 7,
        "message": "it is so",
        "severity": "WARNING",
    }
    default = json.loads(formatter_of(LogSettings(type="json", format=FORMAT)).format(record()))
    assert list(default) == ["asctime", "levelname", "message"]
    by_variable = load(None, ENVIRONMENT | {"PATRONI_LOG_TYPE": "json", "PATRONI_LOG_FORMAT": "%(name)s"}).log
    assert json.loads(formatter_of(by_variable).format(record())) == {"name": "effects.x"}


def test_record_is_dropped_when_the_queue_is_full() -> None:
    """Whoever logs never waits for the disk."""
    handler = DroppingHandler(queue.Queue(1))
    for _ in range(3):
        handler.emit(record())
    assert handler.lost == 2


def run(path: Path) -> subprocess.CompletedProcess[str]:
    """Log a few lines in a process of its own, with the settings in a file."""
    command = [sys.executable, "-c", PROGRAM, str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_files_are_rotated_when_a_directory_is_set(tmp_path: Path) -> None:
    """At most `file_num` older files of `file_size`, with `mode`; the logger's own level counts."""
    extra = (
        f"log:\n  dir: {tmp_path}/log\n  file_size: 400\n  file_num: 2\n  mode: 0600\n"
        "  loggers: {effects.other: WARNING}\n"
    )
    ended = run(complete(tmp_path, extra))
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    files = sorted((tmp_path / "log").iterdir())
    assert [path.name for path in files] == ["patroni.log", "patroni.log.1", "patroni.log.2"]
    assert files[0].read_text().endswith("INFO: line 39\n")
    assert not any("not shown" in path.read_text() for path in files)
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}


def test_level_hides_what_is_below_it_when_set(tmp_path: Path) -> None:
    """On stderr, where nothing else is said."""
    assert run(complete(tmp_path, "log: {level: WARNING}\n")).stderr == ""
    assert run(complete(tmp_path)).stderr.count("INFO: line") == 40


def test_directory_is_a_fault_when_it_cannot_be_made(tmp_path: Path) -> None:
    """One line says which, and what to do."""
    from effects.console import set_up_console
    from effects.errors import ConfigError

    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError) as caught:
        set_up_console(LogSettings(dir=tmp_path / "file"))
    assert caught.value.faults[0].startswith("log.dir: ")
