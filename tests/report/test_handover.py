"""What is written when a search ends, and which of its sub-networks are chosen and measured."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from hf_nas import SubNetwork
from hf_nas.extraction import extract
from hf_nas.profiling import Parts, SizeTable
from hf_nas.report import FrontTable, RelativeSizes, fully_evaluated, hand_over, handover, read_outcome
from hf_nas.search import Evaluated, SearchResult
from hf_nas.space import get_search_space
from hf_nas.structures import describe
from tests import zoo


LENGTH = 8
FILES = {
    "result.json", "evaluations.csv", "front.json", "front.csv", "front.png", "progress.csv", "progress.png",
    "summary.json",
}  # fmt: skip


@pytest.fixture(autouse=True)
def quick(request, monkeypatch):
    """Pictures take seconds; one test draws them."""
    if request.function is not test_files_and_outcome:
        for name in ("plot_front", "plot_progress"):
            monkeypatch.setattr(handover, name, lambda *_: None)


@pytest.fixture(scope="module")
def model():
    return zoo.build("bert")


@pytest.fixture(scope="module")
def space(model):
    return get_search_space("small", describe(model))


@pytest.fixture(scope="module")
def sizes(model):
    return RelativeSizes(SizeTable(model), LENGTH)


@pytest.fixture
def result(space, sizes) -> SearchResult:
    """Largest, smallest and two between; the last one was given up with a good estimate."""
    depth, heads, neurons = (len(dimension.choices) - 1 for dimension in space.dimensions)
    encodings = [space.largest_encoding, space.smallest_encoding, (depth, 0, neurons), (depth, heads, 0)]
    trials = []
    for encoding, accuracy, rejected in zip(encodings, (0.9, 0.4, 0.8, 0.95), (False, False, False, True)):
        sub_network = space.decode(encoding)
        costs = (1 - accuracy, sizes.params_ratio(sub_network))
        trials.append(Evaluated(sub_network, encoding, {"accuracy": accuracy}, costs, 0.1, rejected))
    return SearchResult(tuple(trials), ("error", "parameters"), (1.0, 1.05), "random_search", "small")


def run(result, folder, sizes, space, **settings):
    asked: list[list[int]] = []
    saved: list[tuple[int, Path]] = []

    def report(indices):
        asked.append(list(indices))
        return {name: {i: {"accuracy": 0.5 + i / 100, "f1": 0.25} for i in asked[-1]} for name in ("one", "two")}

    def save_model(index, target):
        saved.append((index, target))

    options = {"metric_name": "accuracy", "largest": space.largest, "limits": {}, **settings}
    outcome = hand_over(result, folder, sizes=sizes, report=report, save_model=save_model, **options)
    return outcome, asked, saved


def test_sizes_are_those_of_extracted_models(model, space, sizes):
    small = space.smallest
    extracted, full = extract(model, small), SubNetwork.full(describe(model))
    assert sizes.parameters(small) == sum(p.numel() for p in extracted.parameters())
    inside = [sum(p.numel() for p in each.bert.encoder.parameters()) for each in (extracted, model)]
    assert sizes.params_ratio(small) == inside[0] / inside[1]
    assert sizes.macs_ratio(small) == sizes.table.macs(small, LENGTH) / sizes.table.macs(full, LENGTH)
    assert sizes.params_ratio(full) == sizes.macs_ratio(full) == 1.0
    assert sizes.table.parameters(full, Parts.encoder()) == inside[1]


def test_files_and_outcome(result, sizes, space, tmp_path):
    outcome, asked, saved = run(result, tmp_path, sizes, space, limits={"min_metric": 0.8})
    assert asked == [[0, 1, 2]]
    assert saved == [(2, tmp_path / "extracted")] and outcome.chosen == 2
    assert outcome.chosen_folder == tmp_path / "extracted"
    search = tmp_path / "search"
    assert {path.name for path in search.iterdir() if not path.name.startswith(".")} == {*FILES, "sub_networks"}
    assert all((search / name).stat().st_size > 0 for name in FILES)
    assert (search / "progress.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in (search / "sub_networks").iterdir()} == {"0.json", "1.json", "2.json"}
    for index in range(3):
        saved_one = SubNetwork.load(search / "sub_networks" / f"{index}.json", space.structure)
        assert saved_one == result.trials[index].sub_network
    assert json.loads((search / "summary.json").read_text())["metrics"] == outcome.metrics == {
        "search_evaluations": 4,
        "search_rejected": 1,
        "search_front": 3,
        "search_hypervolume": result.hypervolume,
        "chosen_parameters": sizes.parameters(result.trials[2].sub_network),
        "chosen_params_ratio": sizes.params_ratio(result.trials[2].sub_network),
        "chosen_macs_ratio": sizes.macs_ratio(result.trials[2].sub_network),
        "chosen_one_accuracy": 0.52,
        "chosen_one_f1": 0.25,
        "chosen_two_accuracy": 0.52,
        "chosen_two_f1": 0.25,
    }  # fmt: skip
    assert read_outcome(tmp_path) == outcome
    rows = {row.index: row for row in outcome.table.rows}
    assert {index: row.reported for index, row in rows.items()} == {0: 0.5, 1: 0.51, 2: 0.52}
    assert outcome.table.largest.index == 0 and outcome.table.chosen.index == 2


def test_what_was_given_up_is_never_chosen(result, sizes, space, tmp_path):
    assert len(fully_evaluated(result).trials) == 3
    # By the estimates alone, the one that was given up would be the best within any of these limits.
    for number, limits in enumerate(({"max_params_ratio": 0.99}, {"max_metric_drop": 0.2}, {"min_metric": 0.7}, {})):
        outcome, asked, _ = run(result, tmp_path / str(number), sizes, space, limits=limits)
        assert outcome.chosen != 3 and all(3 not in indices for indices in asked)
        assert 3 not in {row.index for row in outcome.table.rows}
    swapped = replace(result, trials=result.trials[::-1])
    outcome, asked, _ = run(swapped, tmp_path / "swapped", sizes, space, limits={"max_params_ratio": 0.99})
    assert outcome.chosen == 1 and asked == [[1, 2, 3]]


def test_the_largest_beside_the_search_is_measured_and_referred_to(result, sizes, space, tmp_path):
    within = replace(result, trials=result.trials[1:])
    reference = Evaluated(space.largest, space.largest_encoding, {"accuracy": 0.9}, ())
    limits = {"max_metric_drop": 0.15, "max_params_ratio": 0.99}
    outcome, asked, saved = run(within, tmp_path, sizes, space, limits=limits, reference=reference)
    assert asked == [[0, 1, 3]] and saved[0][0] == outcome.chosen == 1  # 0.8 is better than 0.9 - 0.15
    largest = outcome.table.largest
    assert (largest.index, largest.metric, largest.reported, largest.on_front) == (3, 0.9, 0.53, False)
    assert largest.parameters_share == 1.0
    assert outcome.result == within and outcome.metrics["search_evaluations"] == 3
    assert read_outcome(tmp_path) == outcome
    # A reference that is given as a number stays the reference.
    limits |= {"reference_metric": 0.5, "max_metric_drop": 0.2}
    outcome, _, _ = run(within, tmp_path / "given", sizes, space, limits=limits, reference=reference)
    assert outcome.chosen == 0


def test_the_largest_need_not_be_known(result, sizes, space, tmp_path):
    within = replace(result, trials=result.trials[1:])
    outcome, asked, _ = run(within, tmp_path, sizes, space, limits={"max_params_ratio": 0.99})
    assert asked == [[0, 1]] and outcome.table.largest.index == 1


def test_a_limit_of_the_latency_asks_for_the_best_instead_of_the_knee(result, sizes, space, tmp_path):
    knee, _, _ = run(result, tmp_path / "knee", sizes, space)
    best, _, _ = run(result, tmp_path / "best", sizes, space, limits={"max_latency_ratio": 0.9})
    unlimited, _, _ = run(result, tmp_path / "none", sizes, space, limits={"max_latency_ratio": None})
    both, _, _ = run(result, tmp_path / "both", sizes, space, limits={"max_latency_ratio": 0.9, "min_metric": 0.3})
    assert (knee.chosen, best.chosen, unlimited.chosen, both.chosen) == (2, 0, 2, 1)


def test_sub_networks_that_left_the_front_go(result, sizes, space, tmp_path):
    run(replace(result, trials=result.trials[1:2]), tmp_path, sizes, space)
    folder = tmp_path / "search" / "sub_networks"
    (folder / "7.json").write_text("{}")
    (folder / "mine.json").write_text("{}")
    run(result, tmp_path, sizes, space)
    assert {path.name for path in folder.iterdir()} == {"0.json", "1.json", "2.json", "mine.json"}


def test_lower_is_better(result, sizes, space, tmp_path):
    trials = tuple(
        replace(trial, metrics={"loss": loss}, costs=(loss, trial.costs[1]))
        for trial, loss in zip(result.trials[:3], (0.1, 2.0, 0.3))
    )
    loss = replace(result, trials=trials)

    def report(indices):
        return {"validation": {index: {"loss": 1.0} for index in indices}}

    outcome = hand_over(
        loss, tmp_path, sizes=sizes, metric_name="loss", greater_is_better=False, largest=space.largest,
        limits={"min_metric": 0.5}, report=report, save_model=lambda index, folder: None,
    )  # fmt: skip
    assert outcome.chosen == 2 and not outcome.table.greater_is_better
    assert outcome.metrics["chosen_validation_loss"] == 1.0


def test_without_data_for_a_report(result, sizes, space, tmp_path):
    outcome = hand_over(
        result, tmp_path, sizes=sizes, metric_name="accuracy", largest=space.largest, limits={},
        report=lambda indices: {}, save_model=lambda index, folder: None,
    )  # fmt: skip
    assert all(row.reported is None for row in outcome.table.rows) and outcome.chosen == 2


def test_a_metric_that_is_no_number_is_written(result, sizes, space, tmp_path):
    trials = (replace(result.trials[1], metrics={"accuracy": math.nan}, costs=(1.0, result.trials[1].costs[1])),)
    nan = replace(result, trials=(result.trials[0], *trials))
    outcome, _, _ = run(nan, tmp_path, sizes, space)
    assert {row.index: row.metric for row in outcome.table.rows} == {0: 0.9, 1: None}
    assert read_outcome(tmp_path).table == outcome.table


def test_refusals(result, sizes, space, tmp_path):
    with pytest.raises(ValueError, match="no metric 'f2'"):
        run(result, tmp_path, sizes, space, metric_name="f2")
    with pytest.raises(ValueError, match="at most 0.001 of the parameters"):
        run(result, tmp_path, sizes, space, limits={"max_params_ratio": 0.001})
    with pytest.raises(ValueError, match="evaluated no sub-network"):
        run(replace(result, trials=(replace(result.trials[0], rejected=True),)), tmp_path, sizes, space)
    with pytest.raises(ValueError, match="no metric 'accuracy' but .'other'."):
        hand_over(
            result, tmp_path, sizes=sizes, metric_name="accuracy", largest=space.largest, limits={},
            report=lambda indices: {"one": {index: {"other": 1.0} for index in indices}},
            save_model=lambda index, folder: None,
        )  # fmt: skip
    with pytest.raises(ValueError, match="holds no finished search"):
        read_outcome(tmp_path)
    # What was refused left nothing behind.
    assert list(tmp_path.iterdir()) == []


def test_the_table_reads_back_alone(result, sizes, space, tmp_path):
    outcome, _, _ = run(result, tmp_path, sizes, space)
    data = json.loads((tmp_path / "search" / "front.json").read_text())
    assert FrontTable.from_dict(data) == outcome.table
