"""Reads objects of a configuration file key by key: what is wrong is refused with the file and the path of the key."""

import difflib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import json5


__all__ = ["Section", "read_file"]

_REQUIRED = object()


def read_file(path: str | Path) -> dict[str, Any]:
    """Read JSON with comments and trailing commas.

    Raises:
        ValueError: if the file does not exist, is no such JSON, has a key twice, or holds no object.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"The configuration file {str(path)!r} does not exist; give the path of a JSON file.")
    try:
        data = json5.loads(path.read_text(encoding="utf-8"), allow_duplicate_keys=False)
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"The configuration file {str(path)!r} cannot be read as JSON (comments and trailing commas are allowed): "
            f"{reason}."
        ) from error
    if not isinstance(data, dict):
        raise ValueError(
            f"The configuration file {str(path)!r} holds {_shown(data)}; write an object with the keys of NNCF."
        )
    return data


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


class Section:
    """One object of a configuration.

    Args:
        data: the object.
        source: what error messages call the file.
        path: of the object from the root, e.g. `"bootstrapNAS.search"`.

    Raises:
        ValueError: if `data` is no object.
    """

    def __init__(self, data: Any, source: str, path: str = ""):
        if not isinstance(data, Mapping):
            raise ValueError(f"{source}: {path!r} is {_shown(data)}; write an object there.")
        self.data = data
        self.source = source
        self.path = path

    def __contains__(self, key: str) -> bool:
        return key in self.data

    def key_path(self, key: str) -> str:
        """The path of a key from the root."""
        return f"{self.path}.{key}" if self.path else key

    def error(self, key: str, allowed: str) -> ValueError:
        """The error to raise for a value that is not as `allowed` says (the end of a sentence)."""
        return ValueError(f"{self.source}: {self.key_path(key)!r} is {_shown(self.data.get(key))}; {allowed}.")

    def check_keys(self, known: Sequence[str], refused: Mapping[str, str] | None = None) -> None:
        """Refuse what is neither read nor allowed.

        Args:
            known: the keys that are read.
            refused: keys of NNCF that cannot be honoured, with the reason and what to do instead.

        Raises:
            ValueError: for the first such key.
        """
        for key in self.data:
            if refused and key in refused:
                raise ValueError(f"{self.source}: {self.key_path(key)!r} is not supported: {refused[key]}.")
            if key not in known:
                raise ValueError(
                    f"{self.source}: {self.key_path(str(key))!r} is no key of NNCF 2.x that hf-nas knows; did you "
                    f"mean {_nearest(str(key), known)!r}?"
                )

    def section(self, key: str) -> "Section":
        """The object under a key; an empty one, if there is none."""
        return Section(self.data.get(key, {}), self.source, self.key_path(key))

    def sections(self, key: str) -> list["Section"]:
        """The objects under a key, which holds a list of them, a single one, or nothing."""
        value = self.data.get(key, [])
        if isinstance(value, Mapping):
            return [Section(value, self.source, self.key_path(key))]
        if not isinstance(value, list):
            raise self.error(key, "write an object or a list of objects")
        return [Section(entry, self.source, f"{self.key_path(key)}[{i}]") for i, entry in enumerate(value)]

    def text(self, key: str, default: Any = _REQUIRED, choices: Sequence[str] = ()) -> Any:
        """A string, one of `choices` if there are any."""
        if (value := self._get(key, default)) is default:
            return default
        if not isinstance(value, str) or not value:
            raise self.error(key, "give a string")
        if choices and value not in choices:
            raise self.error(key, f"choose from {', '.join(map(repr, choices))}")
        return value

    def flag(self, key: str, default: Any = _REQUIRED) -> Any:
        """A truth value."""
        if (value := self._get(key, default)) is default:
            return default
        if not isinstance(value, bool):
            raise self.error(key, "give true or false")
        return value

    def number(
        self,
        key: str,
        default: Any = _REQUIRED,
        low: float = -math.inf,
        high: float = math.inf,
        above: float = -math.inf,
    ) -> Any:
        """A finite number from `low` (or above `above`) to `high`."""
        if (value := self._get(key, default)) is default:
            return default
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not number or not low <= value <= high or value <= above:
            lower = f"above {above:g}" if above > -math.inf else f"from {low:g}" if low > -math.inf else ""
            upper = f"up to {high:g}" if high < math.inf else ""
            raise self.error(key, " ".join(["give a finite number", *filter(None, (lower, upper))]))
        return float(value)

    def integer(self, key: str, default: Any = _REQUIRED, low: int = 0, also: Sequence[int] = ()) -> Any:
        """An integer from `low`, or one of `also`."""
        if (value := self._get(key, default)) is default:
            return default
        # JSON writers may turn 40 into 40.0.
        whole = isinstance(value, int | float) and not isinstance(value, bool) and float(value).is_integer()
        if not whole or (value < low and value not in also):
            more = "".join(f", or {other}" for other in also)
            raise self.error(key, f"give an integer of {low} or more{more}")
        return int(value)

    def strings(self, key: str, default: Any = _REQUIRED) -> Any:
        """A list of different strings, as a tuple."""
        if (value := self._get(key, default)) is default:
            return default
        if not isinstance(value, list) or not all(isinstance(entry, str) and entry for entry in value):
            raise self.error(key, "give a list of strings")
        if len(set(value)) < len(value):
            twice = next(entry for entry in value if value.count(entry) > 1)
            raise ValueError(f"{self.source}: {self.key_path(key)!r} lists {twice!r} twice; list it once.")
        return tuple(value)

    def _get(self, key: str, default: Any) -> Any:
        value = self.data.get(key, default)
        if value is _REQUIRED:
            raise ValueError(f"{self.source}: {self.key_path(key)!r} is missing; add it.")
        # In NNCF a key with null is a key without a value.
        return default if value is None and default is not _REQUIRED else value


def _nearest(key: str, known: Sequence[str]) -> str:
    return max(known, key=lambda name: difflib.SequenceMatcher(a=key.lower(), b=name.lower()).ratio())
