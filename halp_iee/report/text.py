"""Values as a person reads them. Whatever is missing or strange reads "not measured" or "-", never fails."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any

ABSENT = "not measured"


def esc(value: object) -> str:
    """Any value as harmless HTML text, also inside an attribute in quotes."""
    return html.escape(str(value), quote=True)


def number(value: object) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    found = float(value)
    return found if math.isfinite(found) else None


def rows(value: object) -> list[Mapping[str, Any]]:
    """The records of a list of records, whatever else is there left out."""
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, (list, tuple)) else []


def mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def ms(value: object, absent: str = ABSENT) -> str:
    """A latency with three figures, in µs, ms or s."""
    found = number(value)
    if found is None:
        return absent
    size = abs(found)
    if size >= 1000:
        return f"{found / 1000:.3g} s"
    if 0 < size < 0.1:
        return f"{figures(found * 1000)} µs"
    return f"{figures(found)} ms"


def figures(value: float, count: int = 3) -> str:
    """``count`` significant figures without an exponent: 0.0123, 1.23, 123, 12300."""
    if value == 0:
        return "0"
    value = float(f"{value:.{count - 1}e}")  # rounded first: 9.996 is 10.0, not 10.00
    decimals = max(0, count - 1 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(decimals, 9)}f}"


def percent(share: object, decimals: int = 1, absent: str = ABSENT) -> str:
    found = number(share)
    return absent if found is None else f"{100 * found:.{decimals}f}%"


def points(after: object, before: object) -> str:
    """Difference of two shares in percentage points, signed."""
    a, b = number(after), number(before)
    if a is None or b is None:
        return "-"
    difference = 100 * (a - b)
    return f"{0.0 if abs(difference) < 0.005 else difference:+.2f} points".replace("+0.00", "±0").replace("-", "−")


def times(after: object, before: object) -> str:
    """``after / before`` as a factor."""
    a, b = number(after), number(before)
    return "-" if a is None or b is None or b == 0 else f"×{figures(a / b)}"


def big(value: object, absent: str = ABSENT) -> str:
    """A count with three figures: 25.6 M."""
    found = number(value)
    if found is None:
        return absent
    for limit, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(found) >= limit:
            return figures(found / limit) + unit
    return f"{found:.0f}" if found == int(found) else figures(found)


def fps(value: object) -> str:
    found = number(value)
    return ABSENT if found is None else (f"{found:,.0f}" if found >= 100 else figures(found)).replace(",", "\u202f")


def seconds(value: object, absent: str = ABSENT) -> str:
    found = number(value)
    if found is None:
        return absent
    if found < 60:
        return f"{figures(found)} s"
    whole = round(found)
    hours, minutes = whole // 3600, whole % 3600 // 60
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {whole % 60:02d} s"


def section(title: str, body: str, note: str = "") -> str:
    """A heading, a line of explanation, and HTML under it; "" when the body is empty."""
    explained = f'<p class="note">{esc(note)}</p>' if note else ""
    return f"<section><h2>{esc(title)}</h2>{explained}{body}</section>" if body else ""


def facts(lines: Iterable[tuple[str, object]]) -> str:
    """Names and values as a table of two columns; what is None or empty is left out."""
    body = "".join(
        f"<tr><td>{esc(name)}</td><td>{esc(plain(value))}</td></tr>" for name, value in lines if value not in (None, "")
    )
    return f'<table class="facts"><tbody>{body}</tbody></table>' if body else ""


def plain(value: object) -> str:
    """Nested values on one line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {plain(inner)}" for key, inner in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(plain(inner) for inner in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
