"""What compose.yaml promises, step by step on one running project: each test goes on where the one before ended.

How long a failover takes is not looked at here: with the ttl of 30 s that the file sets, an agent that dies silently is
missed for as long.
"""

import json
from collections.abc import Callable
from functools import partial

import pytest

from tests.compose.project import ETCD_MEMBERS, NODES, SERVICES, Project, until

pytestmark = [pytest.mark.servers, pytest.mark.compose]
TTL_S = 30


def holds_rows(project: Project, port: int, last: int) -> Callable[[], bool]:
    """A condition: every row up to `last` is read through this port, and no other."""
    return lambda: project.rows(port) == set(range(1, last + 1))


def test_all_members_become_healthy_when_the_project_is_brought_up(project: Project) -> None:
    """`up` is all: seven containers whose own checks pass, one primary, two that stream from it."""
    project.up()
    for service in SERVICES:
        until(partial(project.is_healthy, service), f"{service} healthy")
    project.settle()


def test_nothing_runs_as_root_when_the_containers_are_looked_into(project: Project) -> None:
    """Agents, servers, etcd and HAProxy are ordinary users; an init that reaps is each node's first process."""
    for service in SERVICES:
        assert project.inside(service, "id", "-u") != "0"
        running = project.inside(service, "sh", "-c", "cat /proc/[0-9]*/status 2>/dev/null").splitlines()
        assert "0" not in {line.split()[1] for line in running if line.startswith("Uid:")}
    for node in NODES:
        assert project.inside(node, "cat", "/proc/1/comm") == "tini"


def test_settings_are_those_of_the_file_when_the_cluster_was_made(project: Project) -> None:
    """What the variables say of the cluster is what etcd holds."""
    found = json.loads(project.inside("etcd1", "etcdctl", "get", "--print-value-only", "/service/main/config"))
    asked = {"ttl": TTL_S, "loop_wait": 10, "retry_timeout": 30, "synchronous_mode": True}
    assert {key: found.get(key) for key in asked} == asked
    assert found["postgresql"]["use_pg_rewind"] is True


def test_row_is_read_from_the_replicas_when_it_was_written_through_the_primary(project: Project) -> None:
    """Port 5000 takes writes; port 5001 shows them, read-only, from both replicas in turn."""
    project.query(project.primary_port, "CREATE TABLE proof (id bigint PRIMARY KEY)")
    project.write(1)
    until(holds_rows(project, project.replicas_port, 1), "the row on a replica")
    asked = [project.query(project.replicas_port, "SELECT pg_is_in_recovery(), inet_server_addr()") for _ in range(6)]
    assert {rows[0][0] for rows in asked} == {True}
    assert len({rows[0][1] for rows in asked}) == 2
    assert project.query(project.primary_port, "SELECT pg_is_in_recovery()") == [(False,)]


def test_writes_go_on_when_the_primarys_container_is_killed(project: Project) -> None:
    """Another node leads, nothing that had reached it is lost, and the container comes back as a replica."""
    before = project.settle()
    until(project.is_replicated, "the row on both replicas")
    project.docker("kill", project.container(before))
    project.write(2)
    assert project.rows(project.primary_port) == {1, 2}
    assert project.state(before)["Running"] is False
    project.docker("start", project.container(before))
    assert project.settle() != before
    until(partial(project.is_healthy, before), f"{before} healthy")
    until(holds_rows(project, project.replicas_port, 2), "both rows on a replica")


def test_node_is_started_again_when_its_agent_dies(project: Project) -> None:
    """The container ends with its agent, server and all; the restart policy brings it back."""
    before = project.settle()
    until(project.is_replicated, "all rows on both replicas")
    restarts = project.restarts(before)
    pid = project.inside(before, "cat", "/proc/1/task/1/children").split()[0]
    project.inside(before, "sh", "-c", f"kill -9 {pid}")
    until(lambda: project.restarts(before) > restarts, f"{before} started again")
    project.write(3)
    project.settle()
    until(holds_rows(project, project.replicas_port, 3), "all rows on a replica")


def test_primary_ends_in_good_order_when_its_container_is_stopped(project: Project) -> None:
    """The agent stops its server and hands over within the grace period; started again it is a replica."""
    before = project.settle()
    project.docker("stop", "--time", "90", project.container(before))
    assert project.state(before)["ExitCode"] == 0
    project.write(4)
    project.docker("start", project.container(before))
    assert project.settle() != before
    until(holds_rows(project, project.replicas_port, 4), "all rows on a replica")


def test_data_are_kept_when_the_project_is_taken_down_and_brought_up(project: Project) -> None:
    """Containers and network are new, the volumes are the same."""
    project.settle()
    until(project.is_replicated, "all rows on both replicas")
    containers = {project.container(service) for service in SERVICES}
    system_id = project.query(project.primary_port, "SELECT system_identifier FROM pg_control_system()")
    project.compose("down")
    project.up()
    assert not containers & {project.container(service) for service in SERVICES}
    project.settle()
    until(holds_rows(project, project.primary_port, 4), "all rows on the primary")
    assert project.query(project.primary_port, "SELECT system_identifier FROM pg_control_system()") == system_id
    project.write(5)
    until(holds_rows(project, project.replicas_port, 5), "all rows on a replica")


def test_nothing_changes_when_a_minority_of_etcd_is_killed(project: Project) -> None:
    """The same primary, the same postmaster, and writes for longer than a lease lasts: etcd's own leader was killed."""
    before = project.settle()
    started = project.query(project.primary_port, "SELECT pg_postmaster_start_time()")
    term = project.query(project.primary_port, "SELECT timeline_id FROM pg_control_checkpoint()")
    project.docker("kill", project.container(project.etcd_leader()))
    killed_at_s = project.etcd_seen_at_s(before)
    last = 5

    def is_lease_long_over() -> bool:
        nonlocal last
        last += 1
        project.query(project.primary_port, f"INSERT INTO proof VALUES ({last:d})")
        assert project.query(project.primary_port, "SELECT pg_postmaster_start_time()") == started
        return project.etcd_seen_at_s(before) > killed_at_s + TTL_S

    until(is_lease_long_over, "etcd heard of for longer than a lease after its member was killed")
    assert project.settle() == before
    assert project.query(project.primary_port, "SELECT timeline_id FROM pg_control_checkpoint()") == term
    until(holds_rows(project, project.replicas_port, last), "all rows on a replica")
    for member in ETCD_MEMBERS:
        project.docker("start", project.container(member))
        until(partial(project.is_healthy, member), f"{member} healthy")
    assert project.settle() == before
