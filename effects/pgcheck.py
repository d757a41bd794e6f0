"""Which parameters the server would refuse, asked of the server's own program before they are written anywhere.

One bad parameter keeps a server from starting, and the cluster's configuration reaches all of them: so it is asked when
a configuration is offered or read, not found out at the next failover.
"""

import re
from collections.abc import Collection

import msgspec
from anyio import to_thread

from effects.errors import PostgresError
from effects.files import make_directory, write_atomically
from effects.pgconfig import GENERATED, Parameters, parameters_in_effect, quote
from effects.programs import run_program
from effects.server_settings import ServerSettings

CHECK_TIMEOUT_MS = 5000
# Names are looked up first, values are read only when all names are known; one more to see that nothing is left.
PASSES_MAX = 3
COMPLAINT = re.compile(r'\bLOG:\s+(.*\bparameter "([^"]+)".*)')


async def rejected_parameters(settings: ServerSettings, dynamic: Parameters) -> dict[str, str]:
    """The parameters that this server's version would not start with, each with PostgreSQL's own reason.

    dynamic: `postgresql.parameters` of the cluster; this node's own are checked with them. Takes about 20 ms.
    Raises: PostgresError when the server refuses for another reason, OSError. Source: PostgreSQL, postgres -C.
    """
    rejected: dict[str, str] = {}
    for _ in range(PASSES_MAX):
        rest, left = without_parameters(settings, dynamic, rejected)
        complaints = await _complaints(settings, parameters_in_effect(rest, left))
        if not complaints:
            return rejected
        rejected |= complaints
    raise PostgresError(f"the server refuses its parameters: {'; '.join(rejected.values())}")


def without_parameters(
    settings: ServerSettings, dynamic: Parameters, names: Collection[str]
) -> tuple[ServerSettings, dict[str, object]]:
    """The same settings and dynamic parameters, but without these names."""
    own = {name: value for name, value in settings.parameters.items() if name.lower() not in names}
    left = {name: value for name, value in dynamic.items() if name.lower() not in names}
    return msgspec.structs.replace(settings, parameters=own), left


async def _complaints(settings: ServerSettings, parameters: dict[str, str]) -> dict[str, str]:
    directory = settings.private_dir / "check"
    text = "".join(f"{name} = {quote(value)}\n" for name, value in sorted(parameters.items()))

    def write() -> None:
        make_directory(settings.private_dir, settings.run_as)
        make_directory(directory, settings.run_as)
        write_atomically(directory / GENERATED, text, settings.run_as)

    await to_thread.run_sync(write)
    argv = [settings.program("postgres"), "-D", str(directory), "-C", "port"]
    ended = await run_program(argv, run_as=settings.run_as, timeout_ms=CHECK_TIMEOUT_MS)
    found = {name: reason for reason, name in COMPLAINT.findall(ended.stderr)}
    if not found:
        ended.check()
    return found
