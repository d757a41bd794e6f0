"""Rewrites files that are generated from the table: `python -m tests.golden_update`. Commit what you can explain."""

from collections.abc import Callable
from pathlib import Path

from fsm.diagram import as_svg, page_text
from fsm.dump import table_text

ROOT = Path(__file__).resolve().parent.parent

GOLDEN_FILES: dict[Path, Callable[[], str]] = {
    ROOT / "tests" / "golden" / "table.txt": table_text,
    ROOT / "docs" / "fsm.md": page_text,
    ROOT / "docs" / "fsm.svg": as_svg,
}
"""Each generated file and what it must hold."""


def main() -> None:
    """Writes what has changed and names it."""
    for path, text in GOLDEN_FILES.items():
        if not path.exists() or path.read_text() != text():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text())
            print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
