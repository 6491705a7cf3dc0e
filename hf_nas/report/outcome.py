"""What a search leaves behind, as a value and as it is read from the disk again."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

from hf_nas.report.data import FrontTable
from hf_nas.run_files import guarded
from hf_nas.search import SearchResult


__all__ = ["EXTRACTED_FOLDER", "SEARCH_FOLDER", "SearchOutcome", "fully_evaluated", "read_outcome"]

EXTRACTED_FOLDER, SEARCH_FOLDER = "extracted", "search"


@dataclass(frozen=True)
class SearchOutcome:
    """What a search leaves behind.

    Args:
        result: every evaluated sub-network.
        table: sizes and metrics of them, of the front also on the data the search never saw.
        chosen: index of the trial that was extracted.
        chosen_folder: folder of the extracted model.
        metrics: numbers for `trainer.log_metrics("search", ...)`.
    """

    result: SearchResult
    table: FrontTable
    chosen: int
    chosen_folder: Path
    metrics: dict[str, float]


def fully_evaluated(result: SearchResult) -> SearchResult:
    """The same search without the trials that were given up early, whose metrics are estimates."""
    return replace(result, trials=tuple(trial for trial in result.trials if not trial.rejected))


def read_outcome(folder: str | Path) -> SearchOutcome:
    """What [`hf_nas.report.hand_over`] wrote into this folder.

    Raises:
        ValueError: if there is no finished search in it, or a file of it is damaged.
    """
    folder = Path(folder)
    try:
        return guarded(folder / SEARCH_FOLDER, lambda: _read(folder), ValueError, RecursionError)
    except FileNotFoundError as error:
        raise ValueError(
            f"The folder '{folder}' holds no finished search, for '{error.filename}' is missing; give the output "
            "folder of a search that ended."
        ) from None


def _read(folder: Path) -> SearchOutcome:
    summary, table = (
        json.loads((folder / SEARCH_FOLDER / name).read_text(encoding="utf-8"))
        for name in ("summary.json", "front.json")
    )
    result = SearchResult.load(folder / SEARCH_FOLDER / "result.json")
    return SearchOutcome(
        result, FrontTable.from_dict(table), summary["chosen"], folder / EXTRACTED_FOLDER, summary["metrics"]
    )
