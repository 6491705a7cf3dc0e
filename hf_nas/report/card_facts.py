"""What a model card says beside the files of a run: about the base model, the data, the scores and the class."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from transformers import AutoConfig
from transformers.models.auto import modeling_auto

from hf_nas.files import write_json
from hf_nas.report.base_model import BaseModel
from hf_nas.report.run_folder import CARD_FILE, RunFolder


__all__ = ["SELECTION_SPLIT", "CardFacts", "Score", "auto_class_of", "class_name_of", "pipeline_of", "scores_of"]

SELECTION_SPLIT = "selection"
_GLUE = ("cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb", "wnli")
# By the end of the class name, the tag under which the Hub lists it.
_PIPELINES = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForMultipleChoice": "multiple-choice",
    "ForMaskedLM": "fill-mask",
    "ForCausalLM": "text-generation",
    "LMHeadModel": "text-generation",
    "ForImageClassification": "image-classification",
}


@dataclass(frozen=True)
class CardFacts:
    """What a card needs to know that the files of a run do not tell.

    Args:
        name: of the model.
        source: what one loads it by, by default its name.
        base: the model it was made of, None if that is not known.
        task: its tag on the Hub, by default that of the model's class.
        dataset: name of the data, for people.
        dataset_id: its name on the Hub.
        dataset_config: its configuration there.
        languages: of the texts, by default those of the base model.
        license: of this model, by default that of the base model.
        tags: further ones.
        command: by which it was made.
    """

    name: str
    source: str | None = None
    base: BaseModel | None = None
    task: str | None = None
    dataset: str | None = None
    dataset_id: str | None = None
    dataset_config: str | None = None
    languages: tuple[str, ...] = ()
    license: str | None = None
    tags: tuple[str, ...] = ()
    command: str | None = None

    @classmethod
    def of(cls, run: RunFolder, **known: Any) -> "CardFacts":
        """The facts of a run: what is given, what an earlier card of it recorded, and what its arguments say.

        Args:
            run: of which a card is written.
            known: fields of this class that are known; None is not. `base` may also be the name or folder of the base
                model, and `repository` is its name on the Hub where that is a folder.
        """
        arguments, earlier = run.arguments, run.card
        task = arguments.get("task_name")
        is_glue = isinstance(task, str) and task.lower() in _GLUE and not arguments.get("train_file")
        told = {
            "name": run.name,
            "base": arguments.get("model_name_or_path"),
            "dataset": task.upper() if is_glue else arguments.get("dataset_name") or task,
            "dataset_id": "nyu-mll/glue" if is_glue else arguments.get("dataset_name"),
            "dataset_config": task.lower() if is_glue else arguments.get("dataset_config_name"),
        }
        repository = known.pop("repository", None) or earlier.get("repository")
        values = {
            field: known.get(field) or earlier.get(field) or told.get(field) for field in cls.__dataclass_fields__
        }
        if isinstance(values["base"], str):
            values["base"] = BaseModel.read(values["base"], repository)
        for field in ("languages", "tags"):
            values[field] = tuple(values[field] or ())
        return cls(**values)

    def save(self, run: RunFolder, base: str | None) -> None:
        """Record the facts in the folder of the run, for a card that is written again.

        Args:
            run: of the card.
            base: name or folder that the base model was loaded from.
        """
        data = {**asdict(self), "base": base, "repository": self.base.repository if self.base else None}
        write_json(run.folder / CARD_FILE, data)


@dataclass(frozen=True)
class Score:
    """One metric of the small model.

    Args:
        metric: its name.
        value: of the small model.
        split: of the data, [`SELECTION_SPLIT`] for those that sub-networks were compared on.
        largest: of the largest sub-network on the same data, where that was measured.
    """

    metric: str
    value: float
    split: str
    largest: float | None = None


def scores_of(run: RunFolder) -> list[Score]:
    """All scores of the small model: on data that played no part in the search first, then on the selection set."""
    if run.outcome is None:
        return [Score(name, value, "validation") for name, value in run.metrics.items()]
    outcome = run.outcome
    own = outcome.result.trials[outcome.chosen].metrics
    table = outcome.table
    largest = None if table.largest is None else table.largest.index
    trials = dict(enumerate(outcome.result.trials))
    full = trials[largest].metrics if largest in trials else {}
    reported = list(_reported(outcome.metrics, sorted(own, key=len, reverse=True)))
    first = reported[0][0] if reported else None
    scores = []
    for split, metric, value in reported:
        is_main = split == first and metric == table.metric_name and table.largest is not None
        scores.append(Score(metric, value, split, table.largest.reported if is_main else None))
    return scores + [Score(name, value, SELECTION_SPLIT, full.get(name)) for name, value in own.items()]


def _reported(metrics: Mapping[str, float], names: list[str]) -> Iterator[tuple[str, str, float]]:
    """Data set, metric and value of what was measured after the search; longer metric names first."""
    for key, value in metrics.items():
        if not key.startswith("chosen_"):
            continue
        rest = key.removeprefix("chosen_")
        name = next((name for name in names if rest.endswith(f"_{name}")), None)
        if name is not None:
            yield rest.removesuffix(f"_{name}"), name, value


def _config(run: RunFolder) -> Any:
    try:
        return AutoConfig.from_pretrained(run.small)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"The configuration in '{run.small}' cannot be read ({error}); extract the model again."
        ) from error


def class_name_of(run: RunFolder) -> str:
    """The class of the small model, such as `BertForSequenceClassification`."""
    return (_config(run).architectures or ["PreTrainedModel"])[0]


def pipeline_of(class_name: str) -> str | None:
    """The tag under which the Hub lists a model of this class, None if that cannot be told."""
    return next((tag for end, tag in _PIPELINES.items() if class_name.endswith(end)), None)


def auto_class_of(class_name: str) -> str:
    """The Auto class that loads a class, such as `AutoModelForSequenceClassification`."""
    of_task = (name for name in vars(modeling_auto) if name.startswith("AutoModel") and name != "AutoModel")
    # A model without a head is that of some tasks too, such as the encoding of texts.
    for name in ("AutoModel", *of_task):
        mapping = getattr(getattr(modeling_auto, name), "_model_mapping", None)
        if mapping is not None and class_name in mapping._model_mapping.values():
            return name
    return "AutoModel"
