"""The model card of a small model: metadata that the Hub reads, and a text with everything that was measured."""

import re
from pathlib import Path

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.repocard_data import model_index_to_eval_results
from huggingface_hub.utils import validate_repo_id

from hf_nas.files import write_text
from hf_nas.report.base_model import BaseModel
from hf_nas.report.card_facts import SELECTION_SPLIT, CardFacts, Score, class_name_of, pipeline_of, scores_of
from hf_nas.report.card_text import card_body
from hf_nas.report.methods import method_of
from hf_nas.report.run_folder import RunFolder


__all__ = ["README", "card_metadata", "check_metadata", "render_card", "write_model_card"]

README = "README.md"
# Names under which the Hub knows metrics; of others it makes links that lead nowhere.
_HUB_METRICS = (
    "accuracy", "bleu", "exact_match", "f1", "matthews_correlation", "pearsonr", "perplexity", "precision", "recall",
    "rouge", "sacrebleu", "spearmanr",
)  # fmt: skip


def card_metadata(run: RunFolder, facts: CardFacts) -> ModelCardData:
    """What the Hub reads of a card.

    Args:
        run: with its small model.
        facts: about it.
    """
    base = facts.base or BaseModel("")
    license = {"license": facts.license} if facts.license else dict(base.license or {})
    task = facts.task or pipeline_of(class_name_of(run))
    scores = scores_of(run)
    tags = ["hf_nas", "structured-pruning", *(method.tag for method in method_of(run)), *facts.tags]
    related = {"base_model": base.repository, "base_model_relation": "finetune"} if base.repository else {}
    results = []
    if facts.dataset and task:
        results = [_result(score, facts, task) for score in scores]
    return ModelCardData(
        library_name="transformers",
        **({"license": "unknown"} | license),
        language=list(facts.languages or base.languages) or None,
        **related,
        tags=list(dict.fromkeys(tags)),
        pipeline_tag=task,
        datasets=[facts.dataset_id] if facts.dataset_id and _is_repository(facts.dataset_id) else None,
        metrics=list(dict.fromkeys(score.metric for score in scores if score.metric in _HUB_METRICS)) or None,
        model_name=facts.name,
        eval_results=results or None,
    )


def _result(score: Score, facts: CardFacts, task: str) -> EvalResult:
    is_selection = score.split == SELECTION_SPLIT
    words = "selection set, on which sub-networks were compared" if is_selection else score.split
    return EvalResult(
        task_type=task,
        dataset_type=facts.dataset_id or re.sub(r"[^\w.-]+", "-", facts.dataset).strip("-").lower() or "unknown",
        dataset_name=facts.dataset,
        dataset_config=facts.dataset_config,
        dataset_split="train (held out for selection)" if is_selection else score.split,
        metric_type=score.metric,
        metric_name=f"{score.metric} ({words})",
        metric_value=score.value,
    )


def _is_repository(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def check_metadata(text: str) -> None:
    """Check what the Hub would, as far as that is possible without it.

    Args:
        text: of a card.

    Raises:
        ValueError: if its metadata are no YAML, names are none of the Hub's, or results lack what they need.
    """
    try:
        data = ModelCard(text).data.to_dict()
        wrong = [
            name for name in (data.get("base_model"), *data.get("datasets", ())) if name and not _is_repository(name)
        ]
        for name in ("library_name", "license"):
            if not isinstance(data.get(name), str):
                wrong.append(f"{name} {data.get(name)!r}")
        if "model-index" in data:
            model_index_to_eval_results(data["model-index"])
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"The metadata of the model card are damaged ({error}); write it again.") from error
    if wrong:
        raise ValueError(f"The metadata of the model card hold {wrong[0]!r}, which the Hub refuses; correct it there.")


def render_card(run: RunFolder, facts: CardFacts) -> str:
    """The whole card.

    Args:
        run: with its small model.
        facts: about it.

    Raises:
        ValueError: if there is no small model.
    """
    if run.small is None:
        raise ValueError(f"The run in '{run.folder}' has no small model yet; end the search or the pruning first.")
    text = f"---\n{card_metadata(run, facts).to_yaml()}\n---\n\n{card_body(run, facts)}"
    check_metadata(text)
    return text


def write_model_card(run: RunFolder, facts: CardFacts) -> Path:
    """Write the card into the folder of the small model, with the name that the Hub knows, atomically.

    Returns:
        The path of the card.

    Raises:
        ValueError: if there is no small model.
    """
    text = render_card(run, facts)
    path = run.small / README
    write_text(path, text)
    return path
