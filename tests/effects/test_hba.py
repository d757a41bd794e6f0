"""Lines of pg_hba.conf: what PostgreSQL would refuse is seen before it is written."""

from pathlib import Path

import msgspec
import pytest

from effects.hba import has_own_access, hba_fault
from effects.pgconfig import OWN_ACCESS_HEADER, host_based_authentication
from effects.programs import RunAs
from tests.effects.servers import running_nodes, settings_for

GOOD = [
    "",
    "# a comment",
    "local all all trust",
    'local "my db",postgres +admins, "o d d" peer map=m # why not',
    "local replication replicator scram-sha-256",
    "host all all 0.0.0.0/0 md5",
    "host all all ::1/128 scram-sha-256",
    "host all all 10.0.0.1 255.255.255.0 md5",
    "host replication all samenet scram-sha-256",
    "hostnossl all all .example.org reject",
    "hostgssenc all all all gss include_realm=0",
]
BAD = {
    "locale all all trust": "begins with locale",
    "local all all": "no authentication method",
    "local all all trusted": "trusted is no authentication method",
    "local all all cert": "cannot be used on a local socket",
    "local all all trust map": "map is no option",
    "host all all 10.0.0.0/33 md5": "no range of addresses",
    "host all all 10.0.0.1 md5": "needs a mask",
    "host all all": "are needed",
    "host all all all": "no authentication method",
    "host all all all peer": "local socket only",
    'local "all all trust': "a quote is not closed",
    "local all all trust\nhost all all all trust": "a line break",
}


@pytest.mark.parametrize("line", GOOD)
def test_rule_is_accepted_when_it_is_sound(line: str) -> None:
    """What PostgreSQL takes is not refused here."""
    assert hba_fault([line]) is None


@pytest.mark.parametrize(("line", "says"), BAD.items())
def test_rule_is_refused_with_its_place_when_it_is_bad(line: str, says: str) -> None:
    """The line is named, and what is wrong with it."""
    found = hba_fault(["local all all trust", line])
    assert found is not None
    assert found.startswith("line 2: ")
    assert says in found


@pytest.mark.servers
async def test_server_agrees_when_it_is_asked_about_the_same_lines(
    open_directory: Path, postgres_bin: Path, run_as: RunAs | None
) -> None:
    """PostgreSQL itself finds a fault in each line that is refused here, and in none that is not."""
    async with running_nodes(open_directory, postgres_bin, run_as, "n1") as (node,):
        await node.become_first_primary()
        path = node.settings.data_dir / "pg_hba.conf"
        for line in [*GOOD, *(line for line in BAD if "\n" not in line)]:
            path.write_text(line + "\n")
            rows = await node.execute("SELECT error FROM pg_hba_file_rules WHERE error IS NOT NULL")
            if "not supported by this" not in str(rows):  # a method that the tests' PostgreSQL was built without
                assert bool(rows) == (hba_fault([line]) is not None), (line, rows)


@pytest.mark.parametrize(
    ("line", "is_own"),
    [
        ("local all all peer", True),
        ("local postgres,other postgres scram-sha-256", True),
        ('local "all" "postgres" trust', True),
        ("local all +admins trust", True),
        ("local replication all trust", False),
        ("local all somebody trust", False),
        ("host all all all trust", False),
        ("# local all all trust", False),
        ("include other.conf", True),
    ],
)
def test_own_access_is_seen_when_a_line_gives_it(line: str, is_own: bool) -> None:
    """Only a line for the socket, the agent's database and its user lets the agent in."""
    assert has_own_access(["host all all all md5", line], "postgres") == is_own


def test_agent_is_let_in_when_the_configured_rules_forget_it(tmp_path: Path) -> None:
    """Rules that served an agent that connects over TCP get one more line, before them."""
    made = settings_for(tmp_path, "n1", Path("/nowhere"), None, 5432)
    without = host_based_authentication(msgspec.structs.replace(made, pg_hba=("host all all all md5",)))
    added = ['local all "postgres" md5', 'local replication "Replicator" md5']
    assert without.splitlines() == [OWN_ACCESS_HEADER, *added, "host all all all md5"]
    half = host_based_authentication(msgspec.structs.replace(made, pg_hba=("local all all peer",)))
    assert half.splitlines() == [OWN_ACCESS_HEADER, 'local replication "Replicator" md5', "local all all peer"]
    enough = ("local all,replication all peer",)
    with_it = host_based_authentication(msgspec.structs.replace(made, pg_hba=enough))
    assert with_it.splitlines() == [*enough]
