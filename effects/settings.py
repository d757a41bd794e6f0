"""Reads `patroni.yml` and the PATRONI_* variables into one frozen `Settings`, or says all that is wrong with them.

The names and their meaning are Patroni's; the table of them is `settings_schema.TABLE`.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from effects.errors import ConfigError
from effects.settings_options import tag_contradictions
from effects.settings_preflight import preflight
from effects.settings_schema import (
    CALLBACKS,
    CONTROLLED_PARAMETERS,
    DERIVED_PARAMETERS,
    LOCAL_ONLY,
    PROGRAMS,
    ROWS,
    VARIABLE_OF,
)
from effects.settings_sources import Reading, is_there, read_sources, warn_unknown_keys
from effects.settings_types import (
    Authentication,
    BootstrapSettings,
    ClientSettings,
    Credentials,
    CtlSettings,
    EtcdSettings,
    Findings,
    LogSettings,
    PostgresSettings,
    RestApiSettings,
    Secret,
    Settings,
    WatchdogSettings,
)
from effects.settings_unbuilt import warn_unbuilt
from effects.settings_values import Address

__all__ = [
    "Authentication",
    "BootstrapSettings",
    "Credentials",
    "CtlSettings",
    "EtcdSettings",
    "LogSettings",
    "PostgresSettings",
    "RestApiSettings",
    "Secret",
    "Settings",
    "WatchdogSettings",
    "load",
    "preflight",
]

# PostgreSQL cuts application_name there, and a synchronous standby is known by it. Source: NAMEDATALEN.
APPLICATION_NAME_BYTES_MAX = 63
_ETCD_WAYS = ("etcd3.url", "etcd3.hosts", "etcd3.host")


def load(path: Path | None, environ: Mapping[str, str]) -> Settings:
    """Returns this node's settings.

    Args:
        path: a YAML file, or a directory whose *.yml and *.yaml are merged in the order of their names; where it is
            None or does not exist, PATRONI_CONFIGURATION may hold the YAML text.
        environ: the process's variables; PATRONI_* and MATRIARCH_* ones win over the file. Empty ones are ignored.

    Returns: the settings; what is odd but harmless is in their `warnings`.
    Raises: ConfigError with every fault: its file and line or its variable, what was found and what is allowed.
    Source: Patroni, YAML configuration settings and environment configuration settings.
    """
    findings = Findings()
    try:
        return _load(path, environ, findings)
    except RecursionError:
        raise ConfigError([f"{path or 'environment'}: maps and lists are nested too deeply"]) from None


def load_client(path: Path | None, environ: Mapping[str, str]) -> ClientSettings:
    """What a command that only asks needs of the settings: a file for patronictl is enough, and a node's is too.

    path, environ: as for `load`. Raises: ConfigError with every fault of what it needs. Source: Patroni, patronictl.
    """
    findings = Findings()
    reading = read_sources(path, environ, findings)
    reading.read()
    if not reading.values["scope"]:
        reading.missing("scope")
    _settle_etcd_hosts(reading)
    findings.faults = [fault for fault in findings.faults if not re.search(r": (postgresql|bootstrap|tags)\b", fault)]
    if findings.faults and (path is None or not is_there(path)):
        where = f"{path}: no such file" if path else "no settings file was named"
        findings.fault("-c", f"{where}; name a node's patroni.yml, or one for patronictl with scope and etcd3.hosts")
    findings.raise_faults()
    values = reading.values
    fields = _fields(RestApiSettings, values, "restapi", "restapi.authentication")
    return ClientSettings(
        scope=values["scope"],
        name=values["name"] or "",
        namespace=values["namespace"],
        etcd=_etcd(values),
        restapi=RestApiSettings(**(fields | {"connect_address": ""}), listen_host="", listen_port=0),
        ctl=CtlSettings(**_fields(CtlSettings, values, "ctl", "ctl.authentication")),
    )


def read_settings(path: Path | None, environ: Mapping[str, str]) -> tuple[Reading, Settings]:
    """As `load`, and with the settings everything that was written and where. Raises: ConfigError."""
    settings = load(path, environ)
    findings = Findings()
    reading = read_sources(path, environ, findings)
    reading.read()
    _check(reading)
    return reading, settings


def _load(path: Path | None, environ: Mapping[str, str], findings: Findings) -> Settings:
    reading = read_sources(path, environ, findings)
    reading.read()
    _check(reading)
    if path is not None and not is_there(path):
        # Patroni reads the environment alone then; that is worth a fault only if the environment is not enough.
        message = "no such file or directory; only the environment was read"
        (findings.fault if findings.faults else findings.warn)(str(path), message)
    findings.raise_faults()
    return _settings(reading)


def _check(reading: Reading) -> None:
    """Looks at settings together, and settles those whose default is another setting."""
    _check_required(reading)
    _settle_connect_addresses(reading)
    _settle_etcd_hosts(reading)
    _check_pairs(reading)
    _check_listen_addresses(reading)
    _check_name(reading)
    _check_parameters(reading)
    for contradiction in tag_contradictions(reading.values["tags"]):
        reading.warn("tags", contradiction)
    warn_unbuilt(reading)
    warn_unknown_keys(reading, _method_paths(reading))


def _check_required(reading: Reading) -> None:
    for row in ROWS.values():
        node = reading.leaves.get(row.path)
        if row.is_required and (node is None or node.is_unset):
            reading.missing(row.path)
    for user in ("superuser", "replication"):
        login = f"postgresql.authentication.{user}"
        proofs = [f"{login}.{proof}" for proof in ("password", "sslcert", "gssencmode")]
        if reading.values[f"{login}.username"] and not any(proof in reading.leaves for proof in proofs):
            key = proofs[0]
            reading.warn(key, f"not set, so pg_hba must let this user in without one; {VARIABLE_OF[key]} sets it")


def _settle_connect_addresses(reading: Reading) -> None:
    """Takes the listen address for the one to connect to, unless it is a wildcard. Source: Patroni's default."""
    for section in ("restapi", "postgresql"):
        path = f"{section}.connect_address"
        listen: Address | None = reading.values[f"{section}.listen"]
        written = reading.leaves.get(path)
        if listen is None or (written is not None and not written.is_unset):
            continue
        if not listen.is_wildcard:
            reading.values[path] = Address(listen.hosts[:1], listen.port)
        else:
            reading.missing(path)


def _settle_etcd_hosts(reading: Reading) -> None:
    """Chooses among url, hosts and host: what a variable says comes first, then this order. Source: Patroni `etcd3`."""
    given = [path for path in _ETCD_WAYS if path in reading.leaves and not reading.leaves[path].is_unset]
    given.sort(key=lambda path: not reading.is_from_environment(path))
    for ignored in given[1:]:
        reading.warn(ignored, f"ignored, since {given[0]} is set as well; remove one of them")
    if given:
        _take_etcd(reading, given[0])
    elif "etcd" in reading.unknown:
        place = reading.unknown.pop("etcd").place
        message = "etcd: found etcd's v2 protocol, allowed: etcd3; it is no longer spoken by etcd, rename etcd to etcd3"
        reading.findings.fault(place, message)
    else:
        reading.missing("etcd3.hosts")


def _take_etcd(reading: Reading, path: str) -> None:
    values, found = reading.values, reading.values[path]
    if path == "etcd3.url" and found:
        _take_etcd_url(values, found)
        return
    addresses: tuple[Address, ...] = found if isinstance(found, tuple) else (found,) if found else ()
    hosts = [str(Address(address.hosts, address.port or values["etcd3.port"])) for address in addresses]
    values["etcd3.hosts"] = tuple(dict.fromkeys(hosts))
    for twice in sorted({host for host in hosts if hosts.count(host) > 1}):
        reading.warn(path, f"names {twice} more than once")


def _take_etcd_url(values: dict[str, Any], written: str) -> None:
    parts = urlsplit(written)
    values["etcd3.hosts"] = (str(Address((parts.hostname or "",), parts.port or values["etcd3.port"])),)
    values["etcd3.protocol"] = parts.scheme
    if parts.username and not values["etcd3.username"]:
        values["etcd3.username"] = unquote(parts.username)
    if parts.password and not values["etcd3.password"]:
        values["etcd3.password"] = Secret(unquote(parts.password))


def _check_pairs(reading: Reading) -> None:
    """Finds settings that make sense only with another one."""
    needs = {
        "restapi.authentication.username": "restapi.authentication.password",
        "restapi.authentication.password": "restapi.authentication.username",
        "restapi.keyfile": "restapi.certfile",
        "ctl.authentication.username": "ctl.authentication.password",
        "ctl.authentication.password": "ctl.authentication.username",
        "etcd3.username": "etcd3.password",
        "etcd3.password": "etcd3.username",
        "etcd3.key": "etcd3.cert",
        "postgresql.authentication.rewind.password": "postgresql.authentication.rewind.username",
    }
    for one, other in needs.items():
        if reading.values[one] and other not in reading.leaves and not reading.values[other]:
            reading.fault(one, f"set without {other}; set {VARIABLE_OF[other]} too, or remove it")
    if reading.values["etcd3.protocol"] != "https":
        for path in ("etcd3.cacert", "etcd3.cert"):
            if reading.values[path]:
                reading.warn(path, "not used, since etcd3.protocol is http; set it to https")


def _check_listen_addresses(reading: Reading) -> None:
    rest: Address | None = reading.values["restapi.listen"]
    postgres: Address | None = reading.values["postgresql.listen"]
    if rest is None or postgres is None or rest.port != postgres.port:
        return
    if rest.is_wildcard or postgres.is_wildcard or set(rest.hosts) & set(postgres.hosts):
        message = f"found port {rest.port}, which postgresql.listen has as well; allowed: a port of its own"
        reading.fault("restapi.listen", message)


def _check_name(reading: Reading) -> None:
    name = reading.values["name"] or ""
    if len(name.encode(errors="replace")) > APPLICATION_NAME_BYTES_MAX or not name.isascii():
        limit = f"{APPLICATION_NAME_BYTES_MAX} ASCII characters"
        reading.warn("name", f"longer than {limit} or not ASCII: PostgreSQL would not know it as a synchronous standby")


def _check_parameters(reading: Reading) -> None:
    """Finds parameters that a node cannot have for itself. Source: Patroni, which drops them without a word."""
    section = reading.node("postgresql.parameters")
    for parameter in reading.values["postgresql.parameters"]:
        written = section.value.get(parameter) if section is not None and isinstance(section.value, dict) else None
        place = written.place if written is not None else reading.source
        if parameter.lower() in CONTROLLED_PARAMETERS:
            remedy = "ignored here; set it in the dynamic settings, at first bootstrap.dcs.postgresql.parameters"
            reading.findings.warn(place, f"postgresql.parameters.{parameter}: must be the same on every node, {remedy}")
        elif parameter.lower() in DERIVED_PARAMETERS:
            remedy = "ignored here; it comes from postgresql.listen and scope"
            reading.findings.warn(place, f"postgresql.parameters.{parameter}: {remedy}")


def _method_paths(reading: Reading) -> set[str]:
    """Returns the sections that bear the name of a method of cloning or of bootstrapping."""
    paths = {f"bootstrap.{reading.values['bootstrap.method']}"}
    for prefix in ("postgresql", "bootstrap.dcs.postgresql"):
        paths |= {f"{prefix}.{method}" for method in reading.values[f"{prefix}.create_replica_methods"] or ()}
    return paths


def _settings(reading: Reading) -> Settings:
    values = reading.values
    data_dir: Path = values["postgresql.data_dir"]
    return Settings(
        scope=values["scope"],
        namespace=values["namespace"],
        name=values["name"],
        etcd=_etcd(values),
        restapi=_restapi(values),
        ctl=CtlSettings(**_fields(CtlSettings, values, "ctl", "ctl.authentication")),
        postgresql=_postgresql(reading),
        bootstrap=_bootstrap(reading),
        tags=values["tags"],
        log=LogSettings(**_fields(LogSettings, values, "log"), file_size_bytes=values["log.file_size"]),
        watchdog=_watchdog(values),
        state_dir=values["matriarch.state_dir"] or data_dir.parent / "matriarch" / values["name"],
        run_as=values["matriarch.run_as"],
        warnings=tuple(reading.findings.warnings),
    )


def _fields(struct: type, values: dict[str, Any], *sections: str) -> dict[str, Any]:
    """Returns the fields of a struct that settings of these sections bear the name of."""
    names: tuple[str, ...] = struct.__struct_fields__  # type: ignore[attr-defined]  # msgspec's, on every Struct
    return {
        name: values[f"{section}.{name}"] for section in sections for name in names if f"{section}.{name}" in values
    }


def _etcd(values: dict[str, Any]) -> EtcdSettings:
    fields = _fields(EtcdSettings, values, "etcd3")
    return EtcdSettings(**(fields | {"protocol": fields["protocol"] or "http"}))


def _restapi(values: dict[str, Any]) -> RestApiSettings:
    listen: Address = values["restapi.listen"]
    fields = _fields(RestApiSettings, values, "restapi", "restapi.authentication")
    address = {"connect_address": str(fields["connect_address"])}
    return RestApiSettings(**(fields | address), listen_host=",".join(listen.hosts), listen_port=listen.port)


def _watchdog(values: dict[str, Any]) -> WatchdogSettings:
    fields = _fields(WatchdogSettings, values, "watchdog")
    device = {"device": str(fields["device"])}
    return WatchdogSettings(**(fields | device), safety_margin_s=values["watchdog.safety_margin"])


def _credentials(values: dict[str, Any], user: str) -> Credentials | None:
    fields = _fields(Credentials, values, f"postgresql.authentication.{user}")
    return Credentials(**fields) if fields["username"] else None


def _authentication(values: dict[str, Any]) -> Authentication:
    superuser, replication = (_credentials(values, user) for user in ("superuser", "replication"))
    if superuser is None or replication is None:
        raise ConfigError(["postgresql.authentication: superuser and replication each need a username"])
    return Authentication(
        superuser=superuser, replication=replication, rewind=_credentials(values, "rewind") or superuser
    )


def _postgresql(reading: Reading) -> PostgresSettings:
    values = reading.values
    listen: Address = values["postgresql.listen"]
    proxy = values["postgresql.proxy_address"]
    ignored = CONTROLLED_PARAMETERS + DERIVED_PARAMETERS
    parameters = {key: value for key, value in values["postgresql.parameters"].items() if key.lower() not in ignored}
    special = {
        "connect_address": str(values["postgresql.connect_address"]),
        "proxy_address": str(proxy) if proxy else None,
        "config_dir": values["postgresql.config_dir"] or values["postgresql.data_dir"],
        "parameters": parameters,
        "pg_ctl_timeout_s": values["postgresql.pg_ctl_timeout"],
        "bin_names": _written(values, "postgresql.bin_name", PROGRAMS),
        "callbacks": _written(values, "postgresql.callbacks", CALLBACKS),
        "method_options": _method_options(reading, "postgresql", values["postgresql.create_replica_methods"]),
        "overrides": _overrides(reading, parameters),
    }
    return PostgresSettings(
        **(_fields(PostgresSettings, values, "postgresql") | special),
        listen_hosts=listen.hosts,
        listen_port=listen.port,
        authentication=_authentication(values),
    )


def _written(values: dict[str, Any], section: str, keys: tuple[str, ...]) -> dict[str, str]:
    return {key: values[f"{section}.{key}"] for key in keys if values[f"{section}.{key}"]}


def _overrides(reading: Reading, parameters: dict[str, Any]) -> dict[str, Any]:
    """Returns what this node says itself of the settings that the dynamic configuration may hold too."""
    written = reading.node("postgresql")
    plain: dict[str, Any] = written.plain() if written is not None and isinstance(written.value, dict) else {}
    shared = {key: value for key, value in plain.items() if key not in LOCAL_ONLY and value is not None}
    if "create_replica_method" in shared:
        shared.setdefault("create_replica_methods", shared.pop("create_replica_method"))
    return shared | ({"parameters": parameters} if "parameters" in shared else {})


def _method_options(reading: Reading, section: str, methods: tuple[str, ...]) -> dict[str, Any]:
    nodes = {method: reading.node(f"{section}.{method}") for method in methods}
    return {method: node.plain() for method, node in nodes.items() if node is not None and not node.is_unset}


def _bootstrap(reading: Reading) -> BootstrapSettings:
    values = reading.values
    dcs = reading.node("bootstrap.dcs")
    method = values["bootstrap.method"]
    return BootstrapSettings(
        **_fields(BootstrapSettings, values, "bootstrap"),
        dcs=dcs.plain() if dcs is not None and isinstance(dcs.value, dict) else {},
        method_options={} if method == "initdb" else _method_options(reading, "bootstrap", (method,)),
    )
