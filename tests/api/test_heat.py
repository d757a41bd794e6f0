"""`matriarch fsm --heat`: how often each rule fired, from a simulation's numbers or from real logs."""

import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from itertools import pairwise
from pathlib import Path

import pytest

from effects.errors import ConfigError
from effects.heat import count_moves, is_coverage, read_coverage
from effects.log_reader import GENESIS, encode_line, next_tip
from fsm.diagram import as_dot, as_json, as_mermaid, as_svg, as_text
from fsm.heat import COLD_WIDTH, WIDTH_MAX, Heat, short, width_of
from fsm.picture import HEAT_HEIGHT, WIDTH
from fsm.table import TABLE

SVG = "{http://www.w3.org/2000/svg}"
HEAT = Heat(rules={"R1": 1200, "C1": 3, "L1": 9}, seeds=100)
ALL_FIRED = Heat(rules={rule.id: 5 for rule in TABLE})


def log_of(directory: Path, *rules: str | None) -> Path:
    """A log whose entries moved by these rules."""
    directory.mkdir()
    bodies = [
        b'{"v":1,"seq":%d,"node":"n1"%s}' % (seq, b',"rule":"%s"' % rule.encode() if rule else b"")
        for seq, rule in enumerate(rules, 1)
    ]
    prev, lines = GENESIS, list[bytes]()
    for body in (b'{"v":1,"seq":0,"view":{}}', *bodies):
        lines.append(encode_line("entry" if lines else "snapshot", prev, body))
        prev = next_tip(prev, body)
    (directory / "000000000001.jsonl").write_bytes(b"".join(lines))
    return directory


def run_fsm(*words: str) -> subprocess.CompletedProcess[str]:
    """The command as a user types it."""
    command = [sys.executable, "-c", "from api.cli.main import main; main()", "fsm", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (999, "999"), (1000, "1.0k"), (9_949, "9.9k"), (9_960, "10k"), (999_400, "999k"), (999_600, "1.0M")],
)
def test_number_has_four_characters_at_most_when_it_is_shortened(count: int, text: str) -> None:
    """It fits onto a chip, and never says a thousand thousands."""
    assert short(count) == text
    assert len(text) <= 4


def test_arrow_grows_by_logarithm_when_moves_become_more() -> None:
    """The thinnest never fired; ten times as many moves add the same each time, up to a limit."""
    widths = [width_of(count) for count in (0, 1, 10, 100, 1000)]
    assert widths[0] == COLD_WIDTH < widths[1]
    assert len({later - former for former, later in pairwise(widths[1:])}) == 1
    assert width_of(10**30) == WIDTH_MAX


def test_svg_shows_every_number_when_there_is_heat() -> None:
    """Numbers on chips, dashes only where nothing fired, the whole inside its frame, a legend that says so."""
    text = as_svg(None, HEAT)
    root = ET.fromstring(text)
    cold = [box for box in root.iter(f"{SVG}rect") if "cold" in (box.get("class") or "").split()]
    assert len(cold) == len(TABLE) - len(HEAT.rules)
    assert {"1.2k", "3", "9"} <= {found.text for found in root.iter(f"{SVG}text")}
    assert "3 of" in text
    assert "100 seeds" in text
    for box in root.iter(f"{SVG}rect"):
        assert 0 <= float(box.get("x", 0)) <= WIDTH - float(box.get("width", 0))
        assert 0 <= float(box.get("y", 0)) <= HEAT_HEIGHT - float(box.get("height", 0))


def test_nothing_is_dashed_but_the_legend_when_every_rule_fired() -> None:
    """A kind that is dashed without heat is not with it: a dash means "never"."""
    lines = [path for path in ET.fromstring(as_svg(None, ALL_FIRED)).iter(f"{SVG}path") if path.get("marker-end")]
    assert lines
    assert not any("dasharray" in (line.get("style") or "") for line in lines)
    assert "dashed" not in as_dot(None, ALL_FIRED)
    assert "dasharray" not in as_mermaid(None, ALL_FIRED)
    assert "-.->" not in as_mermaid(None, ALL_FIRED)


def test_other_forms_show_the_numbers_when_there_is_heat() -> None:
    """As labels and widths, as fields, and as rows of text."""
    assert "R1: 1.2k, R6: 0" in as_dot(None, HEAT)
    assert 'label="R2: 0"' in as_dot(None, HEAT)
    assert "stroke-dasharray" in as_mermaid(None, HEAT)
    found = json.loads(as_json(None, HEAT))
    assert {rule["id"]: rule["fired"] for rule in found["rules"] if rule["fired"]} == HEAT.rules
    assert found["seeds"] == 100
    rows = {line.split()[0]: line.split() for line in as_text(None, HEAT).splitlines()[2:]}
    assert rows["R1"][4] == "1,200"
    assert rows["R2"][4:] == ["0", "never"]
    assert len(rows) == len(TABLE)


def test_coverage_is_read_when_a_simulation_wrote_it(tmp_path: Path) -> None:
    """Fields that are not known are no fault: a later version may write more."""
    path = tmp_path / "coverage.json"
    path.write_text('{"rules": {"R1": 12}, "seeds": 7, "faults": {"kill": 3}}')
    assert is_coverage(path)
    assert read_coverage(path) == Heat(rules={"R1": 12}, seeds=7)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "truncated"),
        ("rules", "malformed"),
        ('{"rules": {"R1": -1}}', ">= 0"),
        ('{"rules": {"R1": "many"}}', "Expected `int`"),
        ("{}", "missing required field `rules`"),
        ('{"rules": {"X1": 3, "X2": 4}}', "X1, X2, and none of them is a rule"),
    ],
)
def test_coverage_is_refused_kindly_when_it_is_something_else(tmp_path: Path, text: str, said: str) -> None:
    """One line with the file, what is wrong, and what is allowed."""
    path = tmp_path / "coverage.json"
    path.write_text(text)
    with pytest.raises(ConfigError) as refused:
        read_coverage(path)
    (fault,) = refused.value.faults
    assert fault.startswith(f"{path}: ")
    assert said in fault


def test_moves_are_counted_when_logs_are_given(tmp_path: Path) -> None:
    """Over all logs, entries without a move aside."""
    logs = [log_of(tmp_path / "n1", "B1", None, "R1", "C1"), log_of(tmp_path / "n2", "B1", None)]
    assert count_moves(logs) == Heat(rules={"B1": 2, "R1": 1, "C1": 1})


def test_command_counts_a_log_when_a_directory_is_named(tmp_path: Path) -> None:
    """Rules of another version are named on stderr and left out; a segment alone does as well."""
    log_of(tmp_path / "log", "B1", "X9", "B1")
    for source in (tmp_path, tmp_path / "log" / "000000000001.jsonl"):
        told = run_fsm("--heat", str(source))
        assert told.returncode == 0, told.stderr
        assert [line.split()[4:] for line in told.stdout.splitlines() if line.startswith("B1 ")] == [["2", "##"]]
        assert "left out: X9" in told.stderr


def test_command_says_what_is_allowed_when_the_file_is_not(tmp_path: Path) -> None:
    """No traceback; status 2 as for every wrong setting."""
    path = tmp_path / "notes.txt"
    path.write_text("hello")
    for source, said in ((path, "allowed: a JSON object"), (tmp_path / "nothing", "no such file")):
        told = run_fsm("--heat", str(source), "-F", "svg")
        assert (told.returncode, told.stdout) == (2, "")
        assert said in told.stderr
        assert "Traceback" not in told.stderr
