"""What a search minimises and what limits it keeps to, as the arguments say."""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
from transformers import PreTrainedModel

from hf_nas.elastic import plain_copy_of
from hf_nas.profiling import LatencyTable, MemoryTable, SizeTable
from hf_nas.report import RelativeSizes
from hf_nas.search import (
    Constraint,
    Objective,
    ObjectiveSources,
    check_constraints,
    error_objective,
    get_constraints,
    get_objectives,
)
from hf_nas.space import SearchSpace
from hf_nas.structures import describe
from hf_nas.subnetwork import SubNetwork
from trainer_plugins.arguments import SearchArguments


__all__ = ["SearchGoals", "search_goals"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SearchGoals:
    """What a search minimises and keeps to.

    Args:
        objectives: to minimise, the error first.
        constraints: that every searched sub-network keeps to.
        sizes: of sub-networks, for the report.
        facts: what their numbers depend on, in JSON types, for the fingerprint of the search.
    """

    objectives: list[Objective]
    constraints: list[Constraint]
    sizes: RelativeSizes
    facts: dict[str, Any]


def search_goals(
    model: PreTrainedModel,
    space: SearchSpace,
    arguments: SearchArguments,
    *,
    metric_name: str,
    greater_is_better: bool = True,
    metric_scale: float = 1.0,
    sequence_length: int,
    decoder_length: int | None = None,
    folder: str | Path,
) -> SearchGoals:
    """Put together what a search minimises and keeps to; measures the latency where that is needed.

    Args:
        model: whose sub-networks are searched, a super-network or not.
        space: to search.
        arguments: with the objectives and the limits.
        metric_name: which of the metrics makes the error.
        greater_is_better: whether a larger one is better.
        metric_scale: the metric's value of a perfect model: 100 for one in percent.
        sequence_length: of the inputs that operations, latency and memory are counted for, in tokens.
        decoder_length: tokens of the decoder of an encoder-decoder, by default the same.
        folder: of the search. The latencies are kept there in `latency_table.json`, so that a search that goes on, or
            another process of it, has the same numbers.

    Raises:
        ValueError: for objectives that are not known or do not fit the model, or a limit that even the smallest
            sub-network of the space exceeds.
    """
    error = error_objective(metric_name, greater_is_better)
    batch_size = arguments.latency_batch_size
    conditions = {
        "batch_size": batch_size, "sequence_length": sequence_length, "decoder_length": decoder_length,
    }  # fmt: skip

    def scaled_error(sub_network: SubNetwork, metrics: Mapping[str, float]) -> float:
        return error.cost(sub_network, {name: value / metric_scale for name, value in metrics.items()})

    sources = ObjectiveSources(
        Objective(error.name, scaled_error, needs_metrics=True),
        SizeTable(model),
        sequence_length,
        make_latency_table=lambda: _latency_table(model, Path(folder), conditions),
        make_memory_table=lambda: MemoryTable(_plain(model), **conditions),
        decoder_length=decoder_length,
    )
    objectives = get_objectives(arguments.search_objectives, sources)
    constraints = get_constraints(arguments.constraints, sources)
    check_constraints(constraints, space.smallest)
    facts: dict[str, Any] = {"sequence_length": sequence_length}
    if decoder_length is not None:
        facts["decoder_length"] = decoder_length
    names = {*arguments.search_objectives, *(name for name, limit in arguments.constraints.items() if limit)}
    if names & {"latency", "memory"}:
        facts["latency_batch_size"] = batch_size
    if "latency" in names:
        measured = json.dumps(sources.latency_table.to_dict(), sort_keys=True)
        facts["latency_table"] = hashlib.sha256(measured.encode()).hexdigest()[:12]
    return SearchGoals(
        objectives, constraints, RelativeSizes(sources.size_table, sequence_length, decoder_length), facts
    )


def _plain(model: PreTrainedModel) -> PreTrainedModel:
    """A copy without a super-network and without the autocast that Trainer puts around `forward`."""
    plain = plain_copy_of(model)
    plain.__dict__.pop("forward", None)
    return plain


def _latency_table(model: PreTrainedModel, folder: Path, conditions: Mapping[str, int | None]) -> LatencyTable:
    path = folder / "latency_table.json"
    folder.mkdir(parents=True, exist_ok=True)
    # Of several processes that share the search, one measures.
    with filelock.FileLock(folder / ".latency_table.lock"):
        if path.exists():
            table = LatencyTable.load(path, describe(model))
            found = {name: table.settings[name] for name in conditions}
            if found != conditions:
                raise ValueError(
                    f"The latencies in '{path}' are those of {_said(found)}, and asked for are those of "
                    f"{_said(conditions)}; give another output folder, or delete the file."
                )
            logger.info("The latencies are those in %s, measured on %s.", path, table.settings["machine"])
        else:
            table = LatencyTable.measure(_plain(model), **conditions)
            table.save(path)
    return table


def _said(conditions: Mapping[str, int | None]) -> str:
    decoder = f" and {conditions['decoder_length']} of the decoder" if conditions["decoder_length"] else ""
    return f"batches of {conditions['batch_size']} with {conditions['sequence_length']} tokens{decoder}"
