"""The running project as a fixture, and every container's last words when a test of it fails."""

from collections.abc import Generator, Iterator

import pytest

from tests.compose.daemon import docker_daemon, why_not
from tests.compose.images import build_images
from tests.compose.project import Project

TAG = "test"


@pytest.fixture(scope="session")
def whole_project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """compose.yaml with images built here, not yet up; taken down with its volumes afterwards."""
    if reason := why_not():
        pytest.skip(f"compose.yaml was not run: {reason}")
    with docker_daemon() as address:
        build_images(address, TAG)
        no_settings = tmp_path_factory.mktemp("compose") / "empty.env"
        no_settings.touch()
        project = Project(address, TAG, no_settings)
        try:
            yield project
        finally:
            project.compose("down", "--volumes", "--timeout", "20")


@pytest.fixture
def project(whole_project: Project) -> Project:
    """The project as the test before left it: each test is a step that needs those before it."""
    if whole_project.has_failed:
        pytest.fail("a step before this one failed")
    return whole_project


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the containers' logs with the first failure."""
    report = yield
    project = getattr(item, "funcargs", {}).get("project")
    if report.failed and isinstance(project, Project) and not project.has_failed:
        project.has_failed = True
        report.sections.append(("containers", project.logs()))
    return report
