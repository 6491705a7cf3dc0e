"""The files that BootstrapNAS of NNCF 2.x writes about a search, read and written without running their text.

`search_progression.csv` spells each evaluated sub-network out, in the numbers of [`WidthGroups`]; the caches name it
by its indices.
"""

import csv
import io
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from hf_nas.files import atomic_path, write_json
from hf_nas.search.result import Evaluated, SearchResult
from hf_nas.search.width_groups import WidthGroups
from hf_nas.space.base import SearchSpace
from hf_nas.subnetwork import SubNetwork


__all__ = ["read_caches", "read_search_progression", "write_front", "write_old_files"]

PROGRESSION, MACS_CACHE, METRIC_CACHE = "search_progression.csv", "cache_MACs.csv", "cache_top1_acc.csv"
# Names of the two numbers in the files, MACs in millions and the metric in percent, also among a trial's metrics.
_MACS, _PERCENT = "MACs", "top1_acc"
_FRONT_FORMAT = "hf_nas.width_front/1"

_WIDTH = re.compile(r"<ElasticityDim\.WIDTH: 'width'>[,:] \{([\d:, ]*)\}")
_DEPTH = re.compile(r"<ElasticityDim\.DEPTH: 'depth'>[,:] \[([\d, ]*)\]")

Macs = Callable[[SubNetwork], float]


def _spell(widths: Mapping[int, int], skipped: Sequence[int] | None) -> str:
    """The text of a configuration, as Python up to 3.11 prints it."""
    parts = [f"(<ElasticityDim.WIDTH: 'width'>, {dict(widths)})"] if widths else []
    parts += [f"(<ElasticityDim.DEPTH: 'depth'>, {list(skipped)})"] if skipped is not None else []
    return f"OrderedDict([{', '.join(parts)}])"


def _parse(text: str, where: str) -> tuple[dict[int, int], tuple[int, ...]]:
    """The inverse of [`_spell`]; nothing but a text that would be spelt like that is read."""
    found = [pattern.search(text) for pattern in (_WIDTH, _DEPTH)]
    numbers = [[int(number) for number in re.findall(r"\d+", match.group(1))] if match else [] for match in found]
    widths = dict(zip(numbers[0][::2], numbers[0][1::2]))
    spelt = _spell(widths, numbers[1] if found[1] else None)
    # Python from 3.12 on prints the items of an OrderedDict as those of a dictionary.
    newer = re.sub(r"\((<[^>]*>), ([^()]*)\)", r"\1: \2", spelt).replace("([", "({").replace("])", "})")
    if text not in (spelt, newer) or not any(found):
        raise ValueError(
            f"{where} has the configuration {text[:200]!r}; it must be an OrderedDict of WIDTH and DEPTH alone, "
            "as NNCF 2.x writes it."
        )
    return widths, tuple(numbers[1])


def _parse_indices(text: str, where: str) -> tuple[int, ...]:
    indices = tuple(int(number) for number in re.findall(r"\d+", text))
    if text != str(indices):
        raise ValueError(
            f"{where} begins with {text[:200]!r}; it must begin with a tuple of indices such as '(0, 2)'."
        )
    return indices


def _parse_number(text: str, where: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{where} has the value {text!r}; it must be a number.")
    return number


def _parse_metric(text: str, where: str) -> float:
    """The metric in percent, nan where it was no number, as of a network that predicts a constant."""
    return math.nan if text in ("nan", "-nan") else -_parse_number(text, where)


def _rows(path: str | Path, columns: int) -> Iterator[tuple[str, list[str]]]:
    """The rows of a CSV file, each with what error messages call it."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"The file {str(path)!r} does not exist; give one that BootstrapNAS wrote.")
    with path.open(newline="", encoding="utf-8") as file:
        for number, row in enumerate(csv.reader(file), start=1):
            where = f"Row {number} of {str(path)!r}"
            if len(row) != columns:
                raise ValueError(f"{where} has {len(row)} columns; it must have {columns}.")
            yield where, row


def read_search_progression(
    path: str | Path,
    groups: WidthGroups,
    *,
    metric_name: str = "accuracy",
    metric_scale: float = 1.0,
    space: SearchSpace | None = None,
) -> SearchResult:
    """Read a `search_progression.csv`.

    Args:
        path: of the file.
        groups: what its numbers stand for.
        metric_name: of the metric, which the file calls `top1_acc` whatever it is.
        metric_scale: value of the metric that is 100 percent: 1 for fractions, 100 for percent.
        space: encodes the sub-networks; without one their encodings are empty.

    Returns:
        One trial a row; a sub-network that the search came upon again is there again. Its metrics are `metric_name`
        and, as in the file, `MACs` in millions and `top1_acc` in percent; its costs the error and the MACs in
        millions.

    Raises:
        ValueError: if a row is none of such a file, or its sub-network none of the model or the space.
    """
    trials = []
    for where, (text, macs_name, macs, metric_name_there, metric) in _rows(path, 5):
        if (macs_name, metric_name_there) != (_MACS, _PERCENT):
            raise ValueError(
                f"{where} names {macs_name!r} and {metric_name_there!r}; it must name 'MACs' and 'top1_acc'."
            )
        sub_network = groups.sub_network(*_parse(text, where))
        numbers = _parse_number(macs, where), _parse_metric(metric, where)
        trials.append(_trial(sub_network, *numbers, metric_name, metric_scale, space))
    return _result(trials, path)


def read_caches(
    folder: str | Path,
    groups: WidthGroups,
    *,
    metric_name: str = "accuracy",
    metric_scale: float = 1.0,
    space: SearchSpace | None = None,
) -> SearchResult:
    """Read `cache_MACs.csv` and `cache_top1_acc.csv`, which hold every evaluated sub-network once.

    Args:
        folder: of the files.
        groups: what their indices stand for; with `widths`.
        metric_name: as in [`read_search_progression`].
        metric_scale: as in [`read_search_progression`].
        space: as in [`read_search_progression`].

    Returns:
        As [`read_search_progression`].

    Raises:
        ValueError: if a row is none of such a file, one of the files lacks a sub-network of the other, or an index has
            no width.
    """
    folder = Path(folder)
    caches: list[dict[tuple[int, ...], float]] = []
    for name in (MACS_CACHE, METRIC_CACHE):
        rows, parse = _rows(folder / name, 2), _parse_metric if name == METRIC_CACHE else _parse_number
        caches.append({_parse_indices(text, where): parse(value, where) for where, (text, value) in rows})
    if alone := [indices for indices in {**caches[0], **caches[1]} if not all(indices in cache for cache in caches)]:
        raise ValueError(
            f"Only one of {MACS_CACHE} and {METRIC_CACHE} in {str(folder)!r} has the sub-network {alone[0]}; give two "
            "files of one search."
        )
    trials = [
        _trial(groups.decode(indices), macs, caches[1][indices], metric_name, metric_scale, space)
        for indices, macs in caches[0].items()
    ]
    return _result(trials, folder)


def _trial(
    sub_network: SubNetwork, macs: float, percent: float, name: str, scale: float, space: SearchSpace | None
) -> Evaluated:
    metrics = {name: percent / 100 * scale, _PERCENT: percent, _MACS: macs}
    encoding = () if space is None else space.encode(sub_network)
    error = 1.0 if math.isnan(percent) else 1 - percent / 100
    return Evaluated(sub_network, encoding, metrics, (error, macs))


def _result(trials: list[Evaluated], source: str | Path) -> SearchResult:
    if not trials:
        raise ValueError(f"{str(source)!r} holds no evaluated sub-network; give the file of a search that began.")
    largest = max(trial.costs[1] for trial in trials)
    return SearchResult(tuple(trials), ("error", _MACS), (1.0, 1.05 * largest), method="nsga2", space="width groups")


def _numbers(trial: Evaluated, metric_name: str, scale: float, macs: Macs | None) -> tuple[float, float]:
    """MACs in millions and the metric in percent; those of a file that was read, digit for digit."""
    if _PERCENT not in trial.metrics and metric_name not in trial.metrics:
        raise ValueError(
            f"The search recorded no metric {metric_name!r} but {sorted(trial.metrics)}; give one of these."
        )
    if macs is None and _MACS not in trial.metrics:
        raise ValueError("The search recorded no MACs; give a function that counts those of a sub-network.")
    millions = trial.metrics[_MACS] if macs is None else macs(trial.sub_network) / 1e6
    percent = trial.metrics[_PERCENT] if _PERCENT in trial.metrics else 100 * trial.metrics[metric_name] / scale
    return millions, percent


def write_old_files(
    folder: str | Path,
    result: SearchResult,
    groups: WidthGroups,
    *,
    metric_name: str,
    metric_scale: float = 1.0,
    macs: Macs | None = None,
) -> None:
    """Write `search_progression.csv` and, if the groups have `widths`, `cache_MACs.csv` and `cache_top1_acc.csv`.

    Args:
        folder: where to.
        result: of the search.
        groups: the numbers of its sub-layers.
        metric_name: of the metric, of which more is better; the files give the negated percentage.
        metric_scale: value of the metric that is 100 percent: 1 for fractions, 100 for percent.
        macs: MACs of a sub-network; by default those that were read with it.

    Raises:
        ValueError: if the groups cannot express a sub-network, or a number is missing.
    """
    progression, caches = [], ({}, {})
    for trial in result.trials:
        widths, skipped = groups.configuration(trial.sub_network)
        millions, percent = _numbers(trial, metric_name, metric_scale, macs)
        text = _spell(widths, None if groups.blocks is None else skipped)
        progression.append((text, _MACS, millions, _PERCENT, -percent))
        if groups.widths is not None:
            indices = str(groups.encode(trial.sub_network))
            caches[0].setdefault(indices, millions)
            caches[1].setdefault(indices, -percent)
    _write_rows(Path(folder) / PROGRESSION, progression)
    if groups.widths is not None:
        for name, cache in zip((MACS_CACHE, METRIC_CACHE), caches):
            _write_rows(Path(folder) / name, cache.items())


def _write_rows(path: Path, rows: Iterable[Sequence[object]]) -> None:
    buffer = io.StringIO(newline="")
    csv.writer(buffer).writerows(rows)
    with atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getvalue().encode())


def write_front(
    path: str | Path,
    result: SearchResult,
    groups: WidthGroups,
    *,
    metric_name: str,
    metric_scale: float = 1.0,
    macs: Macs | None = None,
) -> None:
    """Write the Pareto front of a search as JSON, fewest MACs first.

    Each entry has `subnet_config` (`width` by group and, if depth is elastic, `depth`), the metric under its name,
    `MACs` in millions and `sub_network` for [`SubNetwork.from_dict`][hf_nas.subnetwork.SubNetwork.from_dict].

    Args:
        path: of the file.
        result: of the search.
        groups: the numbers of its sub-layers.
        metric_name: of the metric.
        metric_scale: value of the metric that is 100 percent, as in [`write_old_files`].
        macs: MACs of a sub-network; by default those that were read with it.

    Raises:
        ValueError: as [`write_old_files`].
    """
    entries = []
    for trial in (result.trials[index] for index in result.pareto):
        widths, skipped = groups.configuration(trial.sub_network)
        config = {"width": widths} if groups.blocks is None else {"width": widths, "depth": list(skipped)}
        millions, percent = _numbers(trial, metric_name, metric_scale, macs)
        metric = trial.metrics.get(metric_name, percent / 100 * metric_scale)
        entries.append(
            {"subnet_config": config, metric_name: metric, _MACS: millions, "sub_network": trial.sub_network.to_dict()}
        )
    entries.sort(key=lambda entry: entry[_MACS])
    write_json(path, {"format": _FRONT_FORMAT, "sub_networks": entries})
