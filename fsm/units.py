"""PostgreSQL's units of size and time: a setting as SHOW would show it, however it was written."""

import re

_SIZES_KB = {"B": 1 / 1024, "kB": 1, "MB": 1 << 10, "GB": 1 << 20, "TB": 1 << 30}
_TIMES_MS = {"us": 1 / 1000, "ms": 1, "s": 1_000, "min": 60_000, "h": 3_600_000, "d": 86_400_000}
_AMOUNT = re.compile(r"\s*(\d{1,15})\s*([A-Za-z]*)\s*")
_DECIMAL = re.compile(r"\s*([+-]?\d{1,15}(?:\.\d{1,6})?)\s*([A-Za-z]*)\s*")
_UNIT = re.compile(r"(\d*)([A-Za-z]+)")


def amount_in(value: object, unit: str) -> int | None:
    """A whole amount of size or time in `unit`, whatever unit it was written in; None if it is no such amount.

    Args:
        value: such as 30, "30", "30s", "1min", "0.5h".
        unit: what a number alone counts in, and what is returned: "s", "B" and so on.
    """
    found = _DECIMAL.fullmatch(str(value))
    scale = next(table for table in (_SIZES_KB, _TIMES_MS) if unit in table)
    if found is None or isinstance(value, bool) or (found[2] and found[2] not in scale):
        return None
    return round(float(found[1]) * scale[found[2] or unit] / scale[unit])


def shown_setting(value: str, unit: str) -> str:
    """A parameter's value as SHOW shows it: in the largest unit that leaves a whole number.

    Args:
        value: as it stands in a configuration file, such as "16384" or "131072kB".
        unit: what a number alone counts in, as pg_settings names it, such as "8kB"; "" for parameters without one.

    Returns: such as "128MB"; the value itself where it is not an amount.
    Source: PostgreSQL, "Setting Parameters", Numeric with Unit.
    """
    amount, base = _AMOUNT.fullmatch(value), _UNIT.fullmatch(unit)
    if amount is None or base is None:
        return value
    scale = next((table for table in (_SIZES_KB, _TIMES_MS) if base[2] in table), None)
    if scale is None or (amount[2] and amount[2] not in scale):
        return value
    factor = scale[amount[2]] if amount[2] else int(base[1] or 1) * scale[base[2]]
    return _in_largest_unit(int(amount[1]) * factor, scale) or value


def _in_largest_unit(total: float, scale: dict[str, float]) -> str:
    for unit, size in sorted(scale.items(), key=lambda item: -item[1]):
        if total and total % size == 0:
            return f"{int(total / size)}{unit}"
    return ""
