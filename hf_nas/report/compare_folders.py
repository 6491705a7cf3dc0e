"""What the output folder of a run says: which sub-networks of which model were measured, and how good they are."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from hf_nas.extraction import is_stock
from hf_nas.profiling import SizeTable
from hf_nas.report.outcome import read_outcome
from hf_nas.subnetwork import FILE_NAME, SubNetwork


__all__ = ["BuildDense", "MeasuredModel", "RunResults", "read_run"]

# Builds, without weights, the model in a folder, or with a sub-network the dense model that it was made of.
BuildDense = Callable[[Path, SubNetwork | None], PreTrainedModel]

_RESULTS, _RECORD, _CONFIG, _PRUNING = "eval_results.json", "run.json", "config.json", "pruning.json"
_FRONT_FORMAT = "hf_nas.head_front/1"
# What Trainer adds to metrics says nothing about the model.
_NO_METRICS = ("_runtime", "_per_second", "_time", "_samples")
_LENGTHS = ("max_seq_length", "max_source_length")
_LONGEST_CHAIN = 10


@dataclass(frozen=True)
class MeasuredModel:
    """A sub-network and its metrics.

    Args:
        sub_network: of the dense model of the run.
        metrics: by name, on data that played no part in training or search.
        setting: what was asked for, which runs with other seeds have in common; None for what a search found.
    """

    sub_network: SubNetwork
    metrics: Mapping[str, float]
    setting: str | None


@dataclass(frozen=True)
class RunResults:
    """The measured models of a run.

    Args:
        label: under which it is compared.
        folder: of the run.
        table: prices sub-networks of the dense model.
        models: the measured ones.
        seed: of the run, None where it is not recorded.
        task: name of the task or its data, None where it is not recorded.
        base: name on the Hub of the pretrained model, None where it is not known.
        examples: number of examples of the evaluation, None where it is not recorded.
        sequence_length: tokens to which texts were cut, None where it is not recorded.
        full_is_dense: whether its model with all units is the plainly fine-tuned one, not a super-network.
        smaller_is_better: names of metrics that are recorded to be so.
    """

    label: str
    folder: Path
    table: SizeTable
    models: tuple[MeasuredModel, ...]
    seed: int | None
    task: str | None
    base: str | None
    examples: int | None
    sequence_length: int | None
    full_is_dense: bool = False
    smaller_is_better: frozenset[str] = frozenset()

    @property
    def is_dense(self) -> bool:
        """Whether it is nothing but the plainly fine-tuned model."""
        full = SubNetwork.full(self.table.structure)
        return self.full_is_dense and [model.sub_network for model in self.models] == [full]


def read_run(label: str, folder: str | Path, build_dense: BuildDense) -> RunResults:
    """Read the output folder of a run.

    A search gives those sub-networks of its front that were measured on data it did not see, a pruning by importance
    all sizes on the way, any other pruning the model it ends with, and everything else the model in the folder.

    Args:
        label: under which it is compared.
        folder: output folder of a script or a command, or of a model with an `eval_results.json`.
        build_dense: builds models from their configuration, without weights.

    Raises:
        ValueError: if there is nothing to compare in it, or what is there is not complete, damaged or contradictory.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"There is no folder '{folder}' for {label!r}; give the output folder of a run.")
    if (folder / "search").is_dir():
        return _read_search(label, folder, build_dense)
    if (folder / "front.json").is_file():
        return _read_importance(label, folder, build_dense)
    if (folder / "pruned").is_dir() or (folder / "finetuned").is_dir():
        return _read_pruned(label, folder, build_dense)
    if (folder / _CONFIG).is_file():
        return _read_model(label, folder, build_dense)
    raise ValueError(
        f"The folder '{folder}' holds nothing that can be compared; give the output folder of a search, of a pruning, "
        "or of a fine-tuned model that was evaluated (--do_eval)."
    )


# The kinds of folders.


def _read_search(label: str, folder: Path, build_dense: BuildDense) -> RunResults:
    outcome = _guarded(folder / "search", lambda: read_outcome(folder))
    name, trials = outcome.table.metric_name, outcome.result.trials
    source = folder if (folder / _CONFIG).is_file() else outcome.chosen_folder
    run = _run(label, folder, source, build_dense)
    full, models = SubNetwork.full(run.table.structure), []
    # The chosen one has all metrics, the others that of the search.
    measured = [key for key in outcome.metrics if key.startswith("chosen_") and key.endswith(f"_{name}")]
    prefix = measured[0].removesuffix(name) if measured else "chosen_validation_"
    for row in outcome.table.rows:
        if row.reported is None:
            continue
        # The largest one stands beside the trials where it was beyond a limit of the search.
        sub_network = trials[row.index].sub_network if row.index < len(trials) else full
        metrics = {name: row.reported}
        if row.chosen:
            metrics |= _metrics(outcome.metrics, prefix)
        _check_size(run, sub_network, row.parameters)
        models.append(MeasuredModel(sub_network, metrics, None))
    if not models:
        raise ValueError(
            f"The search in '{folder}' measured its front on no data but those it compared by, which flatter it; "
            "search again with a validation set."
        )
    smaller = frozenset() if outcome.table.greater_is_better else frozenset({name})
    seed = outcome.result.seed if run.seed is None else run.seed
    return replace(run, models=tuple(models), seed=seed, full_is_dense=False, smaller_is_better=smaller)


def _read_importance(label: str, folder: Path, build_dense: BuildDense) -> RunResults:
    path = folder / "front.json"
    front = _read_json(path)
    if front.get("format") != _FRONT_FORMAT:
        raise ValueError(
            f"The format of '{path}' is {front.get('format')!r}, not {_FRONT_FORMAT!r}; give the output folder of a "
            "pruning of heads by importance."
        )
    run = _run(label, folder, folder / "pruned", build_dense)
    models = _guarded(path, lambda: _models_of_front(front, run))
    if not any(model.metrics for model in models):
        raise ValueError(f"The front in '{folder}' has no metrics; run its command again with --do_eval.")
    return replace(run, models=models, full_is_dense=True)


def _models_of_front(front: Mapping[str, Any], run: RunResults) -> tuple[MeasuredModel, ...]:
    removed, models = front["removed"], []
    for point in front["points"]:
        gone = {(name, unit) for name, unit in removed[: len(removed) - point["heads"]]}
        kept = {
            row.name: [unit for unit in range(row.units) if (row.name, unit) not in gone]
            for row in run.table.structure
            if row.layout.is_attention and row.units
        }
        sub_network = SubNetwork.of(run.table.structure, kept)
        _check_size(run, sub_network, point["parameters"])
        models.append(MeasuredModel(sub_network, _metrics(point), f"{point['heads']} heads"))
    return tuple(models)


def _read_pruned(label: str, folder: Path, build_dense: BuildDense) -> RunResults:
    """The model at the end of a pruning; its metrics are in the folder of the run."""
    final = folder / "finetuned" if (folder / "finetuned").is_dir() else folder / "pruned"
    record = _read_record(final) if final.name == "finetuned" else None
    if not (final / FILE_NAME).is_file() or (record is not None and not record.get("finished", True)):
        raise ValueError(f"The pruning in '{folder}' is not finished; run its command again, which continues it.")
    return _one_model(label, folder, final, folder / _RESULTS, build_dense)


def _read_model(label: str, folder: Path, build_dense: BuildDense) -> RunResults:
    results = folder / _RESULTS
    parent = folder.resolve().parent
    # Before a fine-tuning, its own metrics are beside a pruned model; of what a run ends with they are above it.
    is_last = folder.name == "finetuned" or (folder.name == "pruned" and not (parent / "finetuned").is_dir())
    if not results.is_file() and is_last:
        results = parent / _RESULTS
    return _one_model(label, folder, folder, results, build_dense)


def _one_model(label: str, folder: Path, model: Path, results: Path, build_dense: BuildDense) -> RunResults:
    if not results.is_file():
        raise ValueError(
            f"There is no {_RESULTS} for {label!r} in '{results.parent}'; evaluate the model by --do_eval with that "
            "folder as --output_dir."
        )
    found = _read_json(results)
    run = _run(label, folder, model, build_dense, found.get("eval_samples"))
    report = _read_json(model / _PRUNING) if (model / _PRUNING).is_file() else {}
    sub_network = run.models[0].sub_network
    if "parameters" in report:
        _check_size(run, sub_network, report["parameters"])
    setting = _setting(report) or f"{run.table.parameters(sub_network)} parameters"
    setting += " finetuned" if model.name == "finetuned" else ""
    measured = MeasuredModel(sub_network, _metrics(found), setting)
    return replace(run, models=(measured,), full_is_dense=run.full_is_dense and not report)


# What they have in common.


def _run(label: str, folder: Path, model: Path, build_dense: BuildDense, examples: int | None = None) -> RunResults:
    """What the records say, with the sub-network that the model in a folder is, without metrics."""
    record = (_read_record(folder) or _read_record(folder / "pruning") or _read_record(model) or {}).get(
        "arguments", {}
    )
    sub_network = _sub_network_of(model, record)
    if not (model / _CONFIG).is_file():
        raise ValueError(f"The folder '{model}' has no {_CONFIG}, so that nothing is known of the sizes of {label!r}.")
    dense = _guarded(model, lambda: build_dense(model, sub_network))
    if sub_network is None and not is_stock(dense):
        raise ValueError(
            f"The model in '{model}' was made small, but there is no {FILE_NAME} that tells of which one; give the "
            "output folder of the run that made it."
        )
    table = SizeTable(dense)
    sub_network = SubNetwork.full(table.structure) if sub_network is None else sub_network
    if examples is None and (folder / _RESULTS).is_file():
        examples = _read_json(folder / _RESULTS).get("eval_samples")
    return RunResults(
        label=label,
        folder=folder,
        table=table,
        models=(MeasuredModel(sub_network, {}, None),),
        seed=record.get("seed"),
        task=_task_of(record),
        base=_base_of(folder, record),
        examples=examples,
        sequence_length=next((record[name] for name in _LENGTHS if record.get(name)), None),
        full_is_dense=record.get("sampling_strategy") in (None, "standard"),
    )


def _sub_network_of(model: Path, record: Mapping[str, Any]) -> SubNetwork | None:
    """What is recorded beside a model, or beside the small one that was fine-tuned to it."""
    path = model / FILE_NAME
    if not path.is_file() and record.get("model_name_or_path"):
        origin = _local(record["model_name_or_path"], model)
        path = path if origin is None else origin / FILE_NAME
    return _guarded(path, lambda: SubNetwork.load(path)) if path.is_file() else None


def _check_size(run: RunResults, sub_network: SubNetwork, parameters: int) -> None:
    sub_network.check(run.table.structure)
    found = run.table.parameters(sub_network)
    if found != parameters:
        raise ValueError(
            f"The results in '{run.folder}' are of a model with {parameters:,} parameters, but by its files it has "
            f"{found:,}; the folder mixes two runs, so run the command again in a new one."
        )


def _metrics(results: Mapping[str, Any], prefix: str = "eval_") -> dict[str, float]:
    return {
        name.removeprefix(prefix): float(value)
        for name, value in results.items()
        if name.startswith(prefix) and not name.removesuffix("_mm").endswith(_NO_METRICS)
        if isinstance(value, int | float) and math.isfinite(value)
    }


def _setting(report: Mapping[str, Any]) -> str:
    """What a pruning was asked for; nothing where that is not known."""
    if "settings" in report:
        asked = {"method": report.get("method"), **report["settings"]}
    else:
        asked = {name: report.get(name) for name in ("pruning_type", "budget", "target")}
    return " ".join(f"{name}={value}" for name, value in asked.items() if value not in (None, False))


def _task_of(record: Mapping[str, Any]) -> str | None:
    """A name by which runs on the same data are known, wherever the data are."""
    names = [record.get("task_name"), record.get("dataset_name"), "demo" if record.get("demo") else None]
    # Folders and files have one name on every machine, their paths do not.
    names += [Path(record[key]).name if record.get(key) else None for key in ("data_dir", "train_file")]
    name = next((name for name in names if name), None)
    if name is None:
        return None
    if record.get("dataset_config_name") and name == record.get("dataset_name"):
        name += f"/{record['dataset_config_name']}"
    if record.get("source_lang"):
        name += f" ({record['source_lang']} to {record.get('target_lang')})"
    return name + (" (version 2)" if record.get("version_2_with_negative") else "")


def _base_of(folder: Path, record: Mapping[str, Any]) -> str | None:
    """Name on the Hub of the model that a run, or the run before it, started from."""
    name = record.get("model_name_or_path")
    for _ in range(_LONGEST_CHAIN):
        if not name:
            return None
        local = _local(name, folder)
        if local is None:
            could_be_one = name.count("/") <= 1 and not name.startswith((".", "/"))
            return name if could_be_one else None
        folder, before = local, _read_record(local) or _read_record(local.resolve().parent) or {}
        name = before.get("arguments", {}).get("model_name_or_path")
    return None


def _local(name: str, folder: Path) -> Path | None:
    """The folder of this name, seen from here or from where a run in this folder may have been started."""
    starts = (Path(), *folder.resolve().parents)
    return next((start / name for start in starts if (start / name / _CONFIG).is_file()), None)


def _read_record(folder: Path) -> dict[str, Any] | None:
    path = folder / _RECORD
    return _read_json(path) if path.is_file() else None


def _read_json(path: Path) -> dict[str, Any]:
    data = _guarded(path, lambda: json.loads(path.read_text(encoding="utf-8")))
    if not isinstance(data, dict):
        raise ValueError(f"'{path}' is damaged (a {type(data).__name__}); run the command again that wrote it.")
    return data


def _guarded(path: Path, read: Callable[[], Any]) -> Any:
    """What a file says; one that is damaged is refused in a sentence."""
    try:
        return read()
    except json.JSONDecodeError as error:
        raise ValueError(f"'{path}' is damaged ({error}); run the command again that wrote it.") from error
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"'{path}' is damaged ({reason}); run the command again that wrote it.") from error
