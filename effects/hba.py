"""What PostgreSQL would say against lines of pg_hba.conf, before they are written: with a bad one no server starts.

The rules are those of hba.c as far as a line can be judged by itself. What they let through is looked at once more by
the running server (`pg_hba_file_rules`).
"""

import ipaddress
import re
from collections.abc import Callable, Sequence

HOST_TYPES = ("host", "hostssl", "hostnossl", "hostgssenc", "hostnogssenc")
INCLUDES = ("include", "include_if_exists", "include_dir")
METHODS = (
    "trust",
    "reject",
    "scram-sha-256",
    "md5",
    "password",
    "gss",
    "sspi",
    "ident",
    "peer",
    "ldap",
    "radius",
    "cert",
    "pam",
    "bsd",
    "oauth",
)
NOT_LOCAL = ("gss", "sspi", "cert")
TOKEN = re.compile(r'(?:"[^"]*"|[^\s#,"])+(?:\s*,\s*(?:"[^"]*"|[^\s#,"])+)*')
# Which databases mean, or may mean, the one that the agent connects to.
ANY_DATABASE = ("all", "postgres", "sameuser", "samerole", "samegroup")


def hba_fault(lines: Sequence[str]) -> str | None:
    """The first thing that is wrong with these lines, with its place; None if nothing is seen.

    Source: PostgreSQL, "The pg_hba.conf File".
    """
    for number, line in enumerate(lines, 1):
        fault = _line_fault(line)
        if fault:
            return f"line {number}: {fault}"
    return None


def has_own_access(lines: Sequence[str], username: str) -> bool:
    """True when one of these lines is for this user on the local socket, which is the way that the agent takes."""
    return any(_is_for(line, username, lambda name: name in ANY_DATABASE or name[0] == "/") for line in lines)


def has_own_replication(lines: Sequence[str], username: str) -> bool:
    """True when one of these lines lets this user speak the replication protocol on the local socket."""
    return any(_is_for(line, username, lambda name: name == "replication") for line in lines)


def _is_for(line: str, username: str, is_database_ours: Callable[[str], bool]) -> bool:
    tokens = [found.group() for found in TOKEN.finditer(_without_comment(line))]
    if tokens and (tokens[0] in INCLUDES or "@" in "".join(tokens[1:3])):
        return True  # only the server can look into other files
    if len(tokens) < 4 or tokens[0] != "local":
        return False
    databases, users = (_names(token) for token in tokens[1:3])
    return any(is_database_ours(name) for name in databases) and any(
        name in ("all", username) or name[0] in "/+" for name in users
    )


def _names(token: str) -> list[str]:
    return [name for part in token.split(",") if (name := part.strip().strip('"'))]


def _line_fault(line: str) -> str | None:
    if "\n" in line or "\0" in line:
        return "it holds a line break"
    if line.count('"') % 2:
        return "a quote is not closed"
    tokens = [found.group() for found in TOKEN.finditer(_without_comment(line))]
    if not tokens or tokens[0] in INCLUDES or line.rstrip().endswith("\\"):
        return None  # nothing, or something that only the server can look at
    if tokens[0] == "local":
        return _rest_fault(tokens[3:], is_local=True)
    if tokens[0] in HOST_TYPES:
        return _address_fault(tokens[3:]) or _rest_fault(tokens[3 + _address_length(tokens[3:]) :], is_local=False)
    return f"it begins with {tokens[0]}, allowed: local, {', '.join(HOST_TYPES)}"


def _without_comment(line: str) -> str:
    quoted = re.compile(r'"[^"]*"|#.*')
    return quoted.sub(lambda found: "" if found.group().startswith("#") else found.group(), line)


def _address_length(tokens: list[str]) -> int:
    """One word for an address, or two for an address and its mask."""
    return 2 if len(tokens) > 1 and _is_ip(tokens[0]) and _is_ip(tokens[1]) else 1


def _address_fault(tokens: list[str]) -> str | None:
    if not tokens:
        return "database, user, address and method are needed"
    address = tokens[0].strip('"')
    if "/" in address:
        try:
            ipaddress.ip_interface(address)
        except ValueError:
            return f"{address} is no range of addresses"
    elif _is_ip(address) and _address_length(tokens) == 1:
        return f"{address} needs a mask, such as {address}/32"
    return None


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text.strip('"'))
    except ValueError:
        return False
    return True


def _rest_fault(tokens: list[str], *, is_local: bool) -> str | None:
    """What is wrong with the method and its options."""
    if not tokens:
        return "there is no authentication method"
    method = tokens[0].strip('"')
    if method not in METHODS:
        return f"{method} is no authentication method"
    if is_local and method in NOT_LOCAL:
        return f"{method} cannot be used on a local socket"
    if not is_local and method == "peer":
        return "peer can be used on a local socket only"
    odd = [option for option in tokens[1:] if "=" not in option]
    return f"{odd[0]} is no option, which has the form name=value" if odd else None
