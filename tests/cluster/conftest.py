"""What is said of a cluster when one of its tests fails."""

from collections.abc import Generator
from typing import Any

import pytest

from tests.cluster.harness import RealCluster, show_what_was_said


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[Any]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A cluster that several tests share outlives the failing one, so its fixture cannot tell."""
    report = yield
    for found in getattr(item, "funcargs", {}).values():
        if call.excinfo is not None and isinstance(found, RealCluster):
            report.sections.append(("What the nodes said", show_what_was_said(found.cluster)))
    return report
