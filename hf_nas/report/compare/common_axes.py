"""Runs of several methods brought onto common axes; what may not be on one page is refused."""

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from hf_nas.report.compare.comparison import ComparedModel, Comparison, DenseModel
from hf_nas.report.compare.folders import MeasuredModel, RunResults
from hf_nas.subnetwork import SubNetwork, kept_ids


__all__ = ["compare_runs"]

logger = logging.getLogger(__name__)

# The first of these that all runs have is the main metric of their task.
_MAIN_METRICS = (
    "f1", "matthews_correlation", "spearmanr", "bleu", "accuracy", "token_accuracy", "mse",
)  # fmt: skip
_SMALLER_IS_BETTER = frozenset({"loss", "mse"})
_SEQUENCE_LENGTH = 128


def compare_runs(
    runs: Sequence[RunResults], *, metric_name: str | None = None, sequence_length: int | None = None
) -> Comparison:
    """Bring runs on one task onto common axes.

    Args:
        runs: what was read from their folders; those with the same label are seeds.
        metric_name: by which they are compared; by default the main one of the task.
        sequence_length: tokens of a sequence for which operations are counted; by default that of every image, that of
            the first run that recorded one, or 128.

    Raises:
        ValueError: if there are none, or they differ in task, examples, base model or metric, or a run is there twice.
    """
    if not runs:
        raise ValueError("There are no runs to compare; give one or more as LABEL=FOLDER.")
    _check_same(runs)
    name = _check_metric(runs, metric_name)
    greater = name not in _SMALLER_IS_BETTER and not any(name in run.smaller_is_better for run in runs)
    if sequence_length is None:
        lengths = (runs[0].table.main_input.tokens, *(run.sequence_length for run in runs), _SEQUENCE_LENGTH)
        sequence_length = next(filter(None, lengths))
    full = SubNetwork.full(runs[0].table.structure)
    sizes = _sizes(runs[0], full, sequence_length)
    rows, scores = [], _dense_scores(runs, name)
    for run in runs:
        for model in run.models:
            if name in model.metrics:
                own = _sizes(run, model.sub_network, sequence_length)
                rows.append(_row(run, model, model.metrics[name], own, sizes))
    if all(row.is_dense for row in rows):
        raise ValueError(f"The runs of {runs[0].label!r} are dense models alone; add one that made a model smaller.")
    order = list(dict.fromkeys(row.label for row in rows))
    rows.sort(key=lambda row: (order.index(row.label), -row.parameters, -row.macs))
    _check_repeats(rows)
    task = next((run.task for run in runs if run.task), None)
    return Comparison(tuple(rows), DenseModel(*sizes, tuple(scores)), name, greater, sequence_length, task)


def _sizes(run: RunResults, sub_network: SubNetwork, sequence_length: int) -> tuple[int, int, int]:
    """Heads, parameters and operations."""
    table = run.table
    heads = sum(len(kept_ids(sub_network[row.name])) for row in table.structure if row.layout.is_attention)
    return heads, table.parameters(sub_network), table.macs(sub_network, sequence_length)


def _row(
    run: RunResults, model: MeasuredModel, metric: float, sizes: tuple[int, int, int], dense: tuple[int, int, int]
) -> ComparedModel:
    shares = [size / full if full else 0.0 for size, full in zip(sizes, dense)]
    pairs = [number for pair in zip(sizes, shares) for number in pair]
    return ComparedModel(run.label, run.seed, *pairs, metric, model.setting, str(run.folder), run.is_dense)


def _dense_scores(runs: Iterable[RunResults], name: str) -> list[float]:
    """Scores of the plainly fine-tuned dense model: of runs that are nothing else, or the first points of others."""
    found: dict[bool, list[float]] = {True: [], False: []}
    for run in runs:
        full = SubNetwork.full(run.table.structure)
        if run.full_is_dense:
            found[run.is_dense] += [m.metrics[name] for m in run.models if m.sub_network == full and name in m.metrics]
    return found[True] or found[False]


# What may not be on one page.


def _check_same(runs: Sequence[RunResults]) -> None:
    for folder, count in Counter(run.folder.resolve() for run in runs).items():
        if count > 1:
            raise ValueError(f"The folder '{folder}' is given {count} times; give it once.")
    for name, what, advice in (
        ("task", "are on the task", "compare runs on one task"),
        ("examples", "were evaluated on so many examples:", "evaluate all of them on the same ones"),
        ("base", "were made of the model", "compare runs that start from one model"),
    ):
        known = [(run, getattr(run, name)) for run in runs if getattr(run, name) is not None]
        _refuse_second(known, what, advice)
    _refuse_second(
        [(run, _dense_words(run)) for run in runs], "were made of a", "compare runs that start from one model"
    )


def _refuse_second(known: Sequence[tuple[RunResults, Any]], what: str, advice: str) -> None:
    for run, value in known[1:]:
        first, expected = known[0]
        if value != expected:
            raise ValueError(
                f"The models of {first.label!r} in '{first.folder}' {what} {expected}, those of {run.label!r} in "
                f"'{run.folder}' {value}; {advice}."
            )


def _dense_words(run: RunResults) -> str:
    """The dense model by its sizes."""
    full = SubNetwork.full(run.table.structure)
    heads, parameters, _ = _sizes(run, full, 1)
    layers = sum(run.table.structure.depths.values())
    return f"{full.model_type} model of {layers} layers, {heads} heads and {parameters:,} parameters"


def _check_metric(runs: Sequence[RunResults], wanted: str | None) -> str:
    """The metric that is compared by; all runs must have it."""
    known = [{name for model in run.models for name in model.metrics} for run in runs]
    common = set.intersection(*known)
    if wanted is None:
        # Every run has a loss, but losses of different methods say little; it must be asked for.
        ordered = [name for name in _MAIN_METRICS if name in common] or sorted(common - {"loss"})
        if not ordered:
            texts = (f"{run.label!r} has {', '.join(sorted(names)) or 'none'}" for run, names in zip(runs, known))
            raise ValueError(
                f"The runs have no metric in common: {'; '.join(texts)}; evaluate all by one, or name it by --metric."
            )
        wanted = ordered[0]
    for run, names in zip(runs, known):
        if wanted not in names:
            every = f"all runs have {', '.join(sorted(common))}" if common else "the runs have no metric in common"
            raise ValueError(
                f"There is no metric {wanted!r} of {run.label!r} in '{run.folder}', which has "
                f"{', '.join(sorted(names)) or 'none'}; choose another --metric ({every})."
            )
        missing = sum(wanted not in model.metrics for model in run.models)
        if missing:
            logger.warning(
                "%d of the %d models of '%s' have no %s and are left out.",
                missing,
                len(run.models),
                run.folder,
                wanted,
            )
    return wanted


def _check_repeats(rows: Iterable[ComparedModel]) -> None:
    """Refuse two runs that would count as one seed twice."""
    first: dict[Any, ComparedModel] = {}
    for row in rows:
        if row.seed is None:
            continue
        earlier = first.setdefault((row.label, row.setting, row.seed), row)
        if earlier.folder != row.folder:
            raise ValueError(
                f"'{earlier.folder}' and '{row.folder}' are both {row.label!r} with seed {row.seed}"
                f"{f' and {row.setting}' if row.setting else ''}; give them different labels, or leave out one."
            )
