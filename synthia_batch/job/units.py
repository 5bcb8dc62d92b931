"""Numbers with units: `32K`, `7h30m`, `1%`, `07:00`. The same in job files, flags and --set.

The suffix of a count is decimal: `limit: 1.5M` is 1,500,000 rows. That of a length in tokens is binary,
as usual for models: `max_model_len: 32K` is 32,768. Case does not matter.
"""

import math
import re
from dataclasses import dataclass
from datetime import datetime, time, timedelta
from decimal import Decimal
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer, PlainValidator, WithJsonSchema

_UNIT_SECONDS = {"d": 86_400, "h": 3600, "m": 60, "s": 1}
COUNT_PATTERN = r"^\s*\d[\d_,]*(\.\d+)?\s*[kKmMgG]?\s*$"
DURATION_PATTERN = (
    r"^\s*(\d+(\.\d+)?\s*[dD])?\s*(\d+(\.\d+)?\s*[hH])?\s*(\d+(\.\d+)?\s*[mM])?\s*(\d+(\.\d+)?\s*[sS]?)?\s*$"
)
SHARE_PATTERN = r"^\s*\d+(\.\d+)?\s*%\s*$"
CLOCK_PATTERN = r"^\s*([01]?\d|2[0-3]):[0-5]\d\s*$"


@dataclass(frozen=True, slots=True)
class Share:
    """A share of all samples. `percent` is above 0 and at most 100."""

    percent: float

    def __str__(self) -> str:
        return f"{self.percent:g}%"

    def count_of(self, total: int) -> int:
        """Return the largest number of `total` that is within this share."""
        # 1% of 300 is 3: rounding corrects the float's last bit.
        return math.floor(round(total * self.percent / 100, 6))


def parse_count(value: Any, *, base: int = 1000) -> Any:
    """Parse a whole number: 200, "1_000", "32K", "1.5M"; K is `base`. Raises ValueError."""
    refuse_bool(value)
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"(\d[\d_,]*(?:\.\d+)?)\s*([kmg]?)", value.strip().lower())
    if found is None:
        k = "32K is 32 x 1024" if base == 1024 else "32K is 32,000"
        raise ValueError(f"Input should be a whole number such as 200, 32K or 1.5M ({k})")
    number = Decimal(re.sub("[_,]", "", found[1])) * base ** " kmg".index(found[2] or " ")
    if number != int(number):
        raise ValueError("Input should be a whole number")
    return int(number)


def parse_token_length(value: Any) -> Any:
    """Parse a number of tokens; 32K is 32,768, as usual for models."""
    return parse_count(value, base=1024)


def parse_duration(value: Any) -> Any:
    """Parse a duration in seconds: 90, "90s", "10m", "7h30m", "1d", "1.5h". Raises ValueError."""
    refuse_bool(value)
    if not isinstance(value, str):
        return value
    found = re.fullmatch(
        r"(?:([\d.]+)\s*d)?\s*(?:([\d.]+)\s*h)?\s*(?:([\d.]+)\s*m)?\s*(?:([\d.]+)\s*s?)?",
        value.strip().lower(),
    )
    if found is None or not any(found.groups()):
        raise ValueError("Input should be a duration such as 90s, 10m, 7h30m or 1d")
    try:
        return math.fsum(
            float(number) * _UNIT_SECONDS[unit]
            for unit, number in zip("dhms", found.groups(), strict=True)
            if number
        )
    except ValueError:
        raise ValueError("Input should be a duration such as 90s, 10m, 7h30m or 1d") from None


def parse_clock(value: Any) -> str:
    """Parse a time of day; return it as HH:MM on a 24-hour clock. Raises ValueError if `value` is none."""
    found = re.fullmatch(CLOCK_PATTERN, value) if isinstance(value, str) else None
    if found is None:
        raise ValueError("Input should be a time of day such as 07:00 or 23:30")
    hour, minute = value.strip().split(":")
    return f"{int(hour):02}:{minute}"


def parse_failure_limit(value: Any) -> "int | Share":
    """Parse a count or a share of failures: 500, "2K", "1%". Raises ValueError if `value` is none."""
    if isinstance(value, Share):
        return value
    if isinstance(value, str) and re.fullmatch(SHARE_PATTERN, value):
        percent = float(value.strip().rstrip("%"))
        if not 0 < percent <= 100:
            raise ValueError("Input should be a share above 0% and at most 100%")
        return Share(percent)
    try:
        count = parse_count(value)
    except ValueError:
        count = None
    if isinstance(count, float) and count.is_integer():
        count = int(count)
    if not isinstance(count, int) or count < 0:
        raise ValueError("Input should be a number of samples such as 500, or a share of them such as 1%")
    return count


def count_allowed(limit: int | Share | None, samples: int) -> int | None:
    """Return how many of `samples` may fail under `limit`; None if all may."""
    return limit.count_of(samples) if isinstance(limit, Share) else limit


def spell_duration(seconds: float) -> str:
    """Return `seconds` with units: 7h30m."""
    whole, text = int(seconds), ""
    if whole != seconds or whole == 0:
        return f"{seconds:g}s"
    for unit, length in _UNIT_SECONDS.items():
        number, whole = divmod(whole, length)
        text += f"{number}{unit}" if number else ""
    return text


def find_next(clock: str, now: datetime) -> datetime:
    """Return the next local time after `now` at which it is `clock`, HH:MM.

    `now` is aware. On a day when the clocks change, wall-clock time counts.
    """
    hour, minute = (int(part) for part in clock.split(":"))
    today = now.astimezone().date()
    for days in (0, 1):
        day = today + timedelta(days=days)
        # From naive local time, so that the offset is that day's own; by way of the timestamp, so that a
        # skipped hour is shifted forward.
        when = datetime.fromtimestamp(datetime.combine(day, time(hour, minute)).timestamp()).astimezone()
        if when > now:
            return when
    raise AssertionError("no tomorrow")


def refuse_bool(value: Any) -> Any:
    """Return `value`, which is no boolean: Pydantic takes true as 1, so a typo would become a number."""
    if isinstance(value, bool):
        raise ValueError("Input should be a number, not true or false")
    return value


def _say_either(kind: str, pattern: str, example: str) -> WithJsonSchema:
    text = {"type": "string", "pattern": pattern, "examples": [example]}
    return WithJsonSchema({"anyOf": [{"type": kind, "exclusiveMinimum": 0}, text]})


Count = Annotated[int, BeforeValidator(parse_count), _say_either("integer", COUNT_PATTERN, "1.5M")]
"""A whole number; K is 1,000."""
TokenLength = Annotated[
    int, BeforeValidator(parse_token_length), _say_either("integer", COUNT_PATTERN, "32K")
]
"""A whole number of tokens; K is 1,024."""
Duration = Annotated[float, BeforeValidator(parse_duration), _say_either("number", DURATION_PATTERN, "7h30m")]
"""Seconds."""
ClockTime = Annotated[
    str, BeforeValidator(parse_clock), WithJsonSchema({"type": "string", "pattern": CLOCK_PATTERN})
]
"""HH:MM, local time."""
FailureLimit = Annotated[
    int | Share,
    PlainValidator(parse_failure_limit),
    PlainSerializer(lambda limit: str(limit) if isinstance(limit, Share) else limit),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 0},
                {"type": "string", "pattern": SHARE_PATTERN, "examples": ["1%"]},
                {"type": "string", "pattern": COUNT_PATTERN, "examples": ["2K"]},
            ]
        }
    ),
]
"""A number of samples, or a share of all."""
