"""The runs of a comparison: which sub-networks of which model were measured, and how good they are."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from hf_nas.extraction import is_stock
from hf_nas.extraction.dense import build_dense
from hf_nas.extraction.stored_models import build_without_weights
from hf_nas.extraction.verification import read_sub_network
from hf_nas.profiling import SizeTable
from hf_nas.report.outcome import SEARCH_FOLDER, read_outcome
from hf_nas.report.run_folder import RunFolder
from hf_nas.run_files import (
    CONFIG_FILE,
    EVALUATION_FILE,
    FINETUNED_FOLDER,
    PRUNED_FOLDER,
    RUN_FILE,
    guarded,
    metrics_in,
    read_arguments,
    read_object,
)
from hf_nas.subnetwork import FILE_NAME, SubNetwork


__all__ = ["MeasuredModel", "RunResults", "read_run"]

_FRONT_FILE, _FRONT_FORMAT = "front.json", "hf_nas.head_front/1"
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


def read_run(label: str, folder: str | Path) -> RunResults:
    """Read the output folder of a run.

    A search gives those sub-networks of its front that were measured on data it did not see, a pruning by importance
    all sizes on the way, any other pruning the model it ends with, and everything else the model in the folder.

    Args:
        label: under which it is compared.
        folder: output folder of a script or a command, or of a model with an `eval_results.json`.

    Raises:
        ValueError: if there is nothing to compare in it, or what is there is not complete, damaged or contradictory.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"There is no folder '{folder}' for {label!r}; give the output folder of a run.")
    run = RunFolder.of(folder)
    if (folder / SEARCH_FOLDER).is_dir():
        return _read_search(label, run)
    if (folder / _FRONT_FILE).is_file():
        return _read_importance(label, run)
    if (folder / PRUNED_FOLDER).is_dir() or (folder / FINETUNED_FOLDER).is_dir():
        return _read_pruned(label, run)
    if (folder / CONFIG_FILE).is_file():
        return _read_model(label, run)
    raise ValueError(
        f"The folder '{folder}' holds nothing that can be compared; give the output folder of a search, of a pruning, "
        "or of a fine-tuned model that was evaluated (--do_eval)."
    )


# The kinds of folders.


def _read_search(label: str, run: RunFolder) -> RunResults:
    outcome = read_outcome(run.folder) if run.outcome is None else run.outcome
    name, trials = outcome.table.metric_name, outcome.result.trials
    source = run.folder if (run.folder / CONFIG_FILE).is_file() else outcome.chosen_folder
    found = _results(label, run, source)
    full, models = SubNetwork.full(found.table.structure), []
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
            metrics |= metrics_in(outcome.metrics, prefix)
        _check_size(found, sub_network, row.parameters)
        models.append(MeasuredModel(sub_network, metrics, None))
    if not models:
        raise ValueError(
            f"The search in '{run.folder}' measured its front on no data but those it compared by, which flatter it; "
            "search again with a validation set."
        )
    smaller = frozenset() if outcome.table.greater_is_better else frozenset({name})
    seed = outcome.result.seed if found.seed is None else found.seed
    return replace(found, models=tuple(models), seed=seed, full_is_dense=False, smaller_is_better=smaller)


def _read_importance(label: str, run: RunFolder) -> RunResults:
    path = run.folder / _FRONT_FILE
    front = read_object(path)
    if front.get("format") != _FRONT_FORMAT:
        raise ValueError(
            f"The format of '{path}' is {front.get('format')!r}, not {_FRONT_FORMAT!r}; give the output folder of a "
            "pruning of heads by importance."
        )
    found = _results(label, run, run.folder / PRUNED_FOLDER)
    models = guarded(path, lambda: _models_of_front(front, found))
    if not any(model.metrics for model in models):
        raise ValueError(f"The front in '{run.folder}' has no metrics; run its command again with --do_eval.")
    return replace(found, models=models, full_is_dense=True)


def _models_of_front(front: Mapping[str, Any], found: RunResults) -> tuple[MeasuredModel, ...]:
    removed, models = front["removed"], []
    for point in front["points"]:
        gone = {(name, unit) for name, unit in removed[: len(removed) - point["heads"]]}
        kept = {
            row.name: [unit for unit in range(row.units) if (row.name, unit) not in gone]
            for row in found.table.structure
            if row.layout.is_attention and row.units
        }
        sub_network = SubNetwork.of(found.table.structure, kept)
        _check_size(found, sub_network, point["parameters"])
        models.append(MeasuredModel(sub_network, metrics_in(point), f"{point['heads']} heads"))
    return tuple(models)


def _read_pruned(label: str, run: RunFolder) -> RunResults:
    """The model at the end of a pruning; its metrics are in the folder of the run."""
    final = next(path for path in (run.folder / FINETUNED_FOLDER, run.folder / PRUNED_FOLDER) if path.is_dir())
    ended = final.name == PRUNED_FOLDER or read_object(final / RUN_FILE).get("finished", True)
    if not (final / FILE_NAME).is_file() or not ended:
        raise ValueError(f"The pruning in '{run.folder}' is not finished; run its command again, which continues it.")
    return _one_model(label, run, final, run.folder)


def _read_model(label: str, run: RunFolder) -> RunResults:
    parent = run.folder.resolve().parent
    # Before a fine-tuning, its own metrics are beside a pruned model; of what a run ends with they are above it.
    is_finetuned = (parent / FINETUNED_FOLDER).is_dir()
    is_last = run.folder.name == FINETUNED_FOLDER or (run.folder.name == PRUNED_FOLDER and not is_finetuned)
    return _one_model(label, run, run.folder, parent if is_last and not run.evaluation else run.folder)


def _one_model(label: str, run: RunFolder, model: Path, evaluated: Path) -> RunResults:
    evaluation = run.evaluation if evaluated == run.folder else read_object(evaluated / EVALUATION_FILE)
    if not evaluation:
        raise ValueError(
            f"There is no {EVALUATION_FILE} for {label!r} in '{evaluated}'; evaluate the model by --do_eval with that "
            "folder as --output_dir."
        )
    found = replace(_results(label, run, model), examples=evaluation.get("eval_samples"))
    report = run.pruning if model == run.small else {}
    sub_network = found.models[0].sub_network
    if "parameters" in report:
        _check_size(found, sub_network, report["parameters"])
    setting = _setting(report) or f"{found.table.parameters(sub_network)} parameters"
    setting += " finetuned" if model.name == FINETUNED_FOLDER else ""
    measured = MeasuredModel(sub_network, metrics_in(evaluation), setting)
    return replace(found, models=(measured,), full_is_dense=found.full_is_dense and not report)


# What they have in common.


def _results(label: str, run: RunFolder, model: Path) -> RunResults:
    """What the records say, with the sub-network that the model in a folder is, without metrics."""
    if not (model / CONFIG_FILE).is_file():
        raise ValueError(
            f"The folder '{model}' has no {CONFIG_FILE}, so that nothing is known of the sizes of {label!r}."
        )
    sub_network = run.sub_network if model == run.small else _sub_network_of(model, run.arguments)
    dense = guarded(model, lambda: _build_dense(model, sub_network))
    if sub_network is None and not is_stock(dense):
        raise ValueError(
            f"The model in '{model}' was made small, but there is no {FILE_NAME} that tells of which one; give the "
            "output folder of the run that made it."
        )
    table = SizeTable(dense)
    sub_network = SubNetwork.full(table.structure) if sub_network is None else sub_network
    return RunResults(
        label=label,
        folder=run.folder,
        table=table,
        models=(MeasuredModel(sub_network, {}, None),),
        seed=run.arguments.get("seed"),
        task=_task_of(run.arguments),
        base=_base_of(run.folder, run.arguments),
        examples=run.evaluation.get("eval_samples"),
        sequence_length=next((run.arguments[name] for name in _LENGTHS if run.arguments.get(name)), None),
        full_is_dense=run.arguments.get("sampling_strategy") in (None, "standard"),
    )


def _sub_network_of(model: Path, arguments: Mapping[str, Any]) -> SubNetwork | None:
    """What is recorded beside a model, or beside the small one that was fine-tuned to it."""
    path = model / FILE_NAME
    if not path.is_file() and arguments.get("model_name_or_path"):
        origin = _local(arguments["model_name_or_path"], model)
        path = path if origin is None else origin / FILE_NAME
    return read_sub_network(path) if path.is_file() else None


def _build_dense(model: Path, sub_network: SubNetwork | None) -> PreTrainedModel:
    """The model in a folder, or the dense one that it was made of, without weights."""
    found = build_without_weights(str(model))
    if sub_network is None:
        return found
    with torch.device("meta"):
        return build_dense(found, sub_network, str(model))


def _check_size(run: RunResults, sub_network: SubNetwork, parameters: int) -> None:
    sub_network.check(run.table.structure)
    found = run.table.parameters(sub_network)
    if found != parameters:
        raise ValueError(
            f"The results in '{run.folder}' are of a model with {parameters:,} parameters, but by its files it has "
            f"{found:,}; the folder mixes two runs, so run the command again in a new one."
        )


def _setting(report: Mapping[str, Any]) -> str:
    """What a pruning was asked for; nothing where that is not known."""
    if "settings" in report:
        asked = {"method": report.get("method"), **report["settings"]}
    else:
        asked = {name: report.get(name) for name in ("pruning_type", "budget", "target")}
    return " ".join(f"{name}={value}" for name, value in asked.items() if value not in (None, False))


def _task_of(arguments: Mapping[str, Any]) -> str | None:
    """A name by which runs on the same data are known, wherever the data are."""
    names = [arguments.get("task_name"), arguments.get("dataset_name"), "demo" if arguments.get("demo") else None]
    # Folders and files have one name on every machine, their paths do not.
    names += [Path(arguments[key]).name if arguments.get(key) else None for key in ("data_dir", "train_file")]
    name = next((name for name in names if name), None)
    if name is None:
        return None
    if arguments.get("dataset_config_name") and name == arguments.get("dataset_name"):
        name += f"/{arguments['dataset_config_name']}"
    if arguments.get("source_lang"):
        name += f" ({arguments['source_lang']} to {arguments.get('target_lang')})"
    return name + (" (version 2)" if arguments.get("version_2_with_negative") else "")


def _base_of(folder: Path, arguments: Mapping[str, Any]) -> str | None:
    """Name on the Hub of the model that a run, or the run before it, started from."""
    name = arguments.get("model_name_or_path")
    for _ in range(_LONGEST_CHAIN):
        if not name:
            return None
        local = _local(name, folder)
        if local is None:
            could_be_one = name.count("/") <= 1 and not name.startswith((".", "/"))
            return name if could_be_one else None
        folder, before = local, read_arguments(local) or read_arguments(local.resolve().parent)
        name = before.get("model_name_or_path")
    return None


def _local(name: str, folder: Path) -> Path | None:
    """The folder of this name, seen from here or from where a run in this folder may have been started."""
    starts = (Path(), *folder.resolve().parents)
    return next((start / name for start in starts if (start / name / CONFIG_FILE).is_file()), None)
