"""What a run left in its output folder: the one place where pages, model cards and comparisons read it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hf_nas.extraction.verification import read_sub_network
from hf_nas.report.outcome import EXTRACTED_FOLDER, SEARCH_FOLDER, SearchOutcome, read_outcome
from hf_nas.report.profile import PROFILE_FORMAT
from hf_nas.run_files import (
    CONFIG_FILE,
    EVALUATION_FILE,
    FINETUNED_FOLDER,
    PRUNED_FOLDER,
    PRUNING_FILE,
    PRUNING_FOLDER,
    RUN_FILE,
    STATE_FILE,
    metrics_in,
    read_arguments,
    read_object,
)
from hf_nas.subnetwork import FILE_NAME, SubNetwork


__all__ = ["CARD_FILE", "PROFILE_FILE", "RunFolder", "find_run_folder", "find_small_model"]

PROFILE_FILE, CARD_FILE = "profile.json", "model_card.json"
# Where the small model is, the last step of a run first.
_SMALL_FOLDERS = (FINETUNED_FOLDER, EXTRACTED_FOLDER, PRUNED_FOLDER)
# The trainings of a run in their order, by the folder that each works in.
_TRAININGS = (
    ("", "training"), ("dense", "dense training"), (PRUNING_FOLDER, "pruning"), (FINETUNED_FOLDER, "fine-tuning"),
)  # fmt: skip


@dataclass(frozen=True)
class RunFolder:
    """A run as its output folder tells it; what is not there is None or empty.

    Args:
        folder: of the run.
        small: folder of the small model.
        sub_network: what that keeps.
        outcome: of the search.
        arguments: what the training depended on, as the scripts record it.
        pruning: the numbers of a pruning.
        logs: by training, what it logged, in order.
        evaluation: what an evaluation wrote into the folder: metrics, its speed and number of examples.
        metrics: of the small model of a pruning on the evaluation set, without the loss.
        profile: sizes and latency of the small model beside the dense one.
        card: what a model card was last made of.
    """

    folder: Path
    small: Path | None = None
    sub_network: SubNetwork | None = None
    outcome: SearchOutcome | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    pruning: Mapping[str, Any] = field(default_factory=dict)
    logs: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    profile: Mapping[str, Any] | None = None
    card: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: str | Path) -> "RunFolder":
        """Read a run.

        Args:
            folder: the output folder of the run, or the one of its small model.

        Raises:
            ValueError: if there is no run in it, or a file of it is damaged.
        """
        found = cls.of(find_run_folder(folder))
        if found.sub_network is None and not found.logs:
            raise ValueError(
                f"The folder '{found.folder}' holds no finished run: neither a search nor a small model nor the log "
                "of a training; give the output folder of a run that ended."
            )
        return found

    @classmethod
    def of(cls, folder: str | Path) -> "RunFolder":
        """What is in this very folder, however little that is.

        Args:
            folder: of a run, of its small model, or of any other model.

        Raises:
            ValueError: if there is no such folder, or a file of it is damaged.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise ValueError(f"There is no folder '{folder}'; give the output folder of a run.")
        small = find_small_model(folder)
        outcome = read_outcome(folder) if _is_searched(folder) else None
        logs = {name: _log(folder / part / STATE_FILE) for part, name in _TRAININGS}
        found = cls(
            folder,
            small=small,
            sub_network=_sub_network(small, outcome),
            outcome=outcome,
            arguments=read_arguments(folder),
            pruning=read_object(small / PRUNING_FILE) if small is not None else {},
            logs={name: log for name, log in logs.items() if log},
            evaluation=read_object(folder / EVALUATION_FILE),
            metrics={} if outcome is not None or small is None else _metrics(folder, small),
            card=read_object(folder / CARD_FILE),
        )
        return found._with_profile()

    def _with_profile(self) -> "RunFolder":
        """The same with the profile, if that is one of this very sub-network."""
        profile = read_object(self.folder / PROFILE_FILE)
        is_ours = profile.get("format") == PROFILE_FORMAT and self.sub_network is not None
        if is_ours and profile.get("sub_network") == self.sub_network.to_dict():
            return replace(self, profile=profile)
        return self

    @property
    def name(self) -> str:
        """Of the run, for people."""
        return self.folder.resolve().name


def find_run_folder(folder: str | Path) -> Path:
    """The output folder of a run, of which this is the folder, or the one of its small model."""
    folder = Path(folder)
    is_small = folder.name in _SMALL_FOLDERS and (folder / FILE_NAME).is_file()
    # A folder may have that name by chance, and a small model may be searched itself.
    of_run = any((folder.parent / name).exists() for name in (SEARCH_FOLDER, PRUNING_FOLDER, PRUNED_FOLDER, RUN_FILE))
    return folder.parent if is_small and of_run and not _is_searched(folder) else folder


def find_small_model(folder: str | Path) -> Path | None:
    """Where the small model of a run is; None if there is none.

    Of a search it is extracted; else fine-tuned, extracted or pruned, whatever came last, or the folder itself.
    """
    folder = Path(folder)
    names = (EXTRACTED_FOLDER,) if _is_searched(folder) else _SMALL_FOLDERS
    for candidate in (*(folder / name for name in names), folder):
        if (candidate / FILE_NAME).is_file() and (candidate / CONFIG_FILE).is_file():
            return candidate
    return None


def _is_searched(folder: Path) -> bool:
    # Written last, when everything of a search is there.
    return (folder / SEARCH_FOLDER / "summary.json").is_file()


def _sub_network(small: Path | None, outcome: SearchOutcome | None) -> SubNetwork | None:
    chosen = None if outcome is None else outcome.result.trials[outcome.chosen].sub_network
    if small is None:
        return chosen
    found = read_sub_network(small / FILE_NAME)
    if chosen is not None and found != chosen:
        raise ValueError(
            f"The model in '{small}' is not sub-network {outcome.chosen}, which the search chose; run the command of "
            "the search again, which extracts that one."
        )
    return found


def _log(path: Path) -> list[dict[str, Any]]:
    history = read_object(path).get("log_history", [])
    return [entry for entry in history if isinstance(entry, dict)] if isinstance(history, list) else []


def _metrics(folder: Path, small: Path) -> dict[str, float]:
    """The metrics of the small model: the script evaluates it in the folder of the run, a step in its own."""
    for place in (folder, small):
        found = metrics_in(read_object(place / EVALUATION_FILE))
        metrics = {name: value for name, value in found.items() if not name.removesuffix("_mm").endswith("loss")}
        if metrics:
            return metrics
    return {}
