"""The command `hf-nas front`, on searches of toy problems."""

import json
import os
from pathlib import Path

import pytest

from hf_nas import SizeTable, describe
from hf_nas.cli import main
from hf_nas.report import RelativeSizes, SearchOutcome, hand_over
from hf_nas.search import Evaluated, Objective, error_objective, macs_objective, parameters_objective, search
from hf_nas.search.evaluation import Rejected
from hf_nas.space import get_search_space
from tests import zoo
from tests.cli import refusals
from tests.search.problems import OBJECTIVES, UnitsSpace, accuracy_of, size_of


def accuracy(sub_network) -> dict[str, float]:
    """More units are better, with diminishing returns."""
    counts = [count or 0 for count in sub_network.counts()]
    return {"accuracy": 1 - 1 / (1 + sum(counts) / 20)}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, SearchOutcome]:
    """A search of a tiny model that has ended; its largest sub-network was beyond a limit."""
    folder = tmp_path_factory.mktemp("finished")
    model = zoo.build("bert")
    sizes = RelativeSizes(SizeTable(model), 16)
    objectives = [error_objective("accuracy"), parameters_objective(sizes.table), macs_objective(sizes.table, 16)]
    space = get_search_space("small", describe(model))
    storage = folder / "search" / "journal.log"
    result = search(
        space, accuracy, objectives, size=sizes.params_ratio, method="random_search", num_samples=12, storage=storage
    )
    outcome = hand_over(
        result,
        folder,
        sizes=sizes,
        metric_name="accuracy",
        largest=space.largest,
        limits={"max_params_ratio": 0.8},
        report=lambda indices: {"validation": {index: {"accuracy": index / 100} for index in indices}},
        save_model=lambda index, path: None,
    )
    return folder, outcome


def front(*arguments: object) -> int:
    return main(["front", *map(str, arguments)])


def as_json(capsys, *arguments: object) -> dict:
    capsys.readouterr()
    assert front(*arguments, "--json") == 0
    return json.loads(capsys.readouterr().out, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


def refused(capsys, message: str, *arguments: object) -> None:
    capsys.readouterr()
    refusals.refused(capsys, message, front(*arguments))


def test_the_table_of_a_finished_search(finished, capsys) -> None:
    folder, outcome = finished
    assert front(folder) == 0
    headline, _, *table = capsys.readouterr().out.splitlines()
    assert headline == (
        f"12 sub-networks evaluated; {len(outcome.result.pareto)} on the front; hypervolume "
        f"{outcome.result.hypervolume:.4f} (up to error 1, parameters 1.05, macs 1.05)"
    )
    assert table == outcome.table.to_markdown().splitlines()
    assert front(folder / "search", "--all") == 0
    assert len(capsys.readouterr().out.splitlines()) == 2 + 2 + 12


def test_json_of_a_finished_search(finished, capsys) -> None:
    folder, outcome = finished
    found = as_json(capsys, folder)
    result = outcome.result
    assert found["finished"] and found["evaluations"] == 12 and found["rejected"] == 0
    assert found["hypervolume"] == result.hypervolume and found["front"] == len(result.pareto)
    assert found["objectives"] == ["error", "parameters", "macs"] and found["chosen"] == outcome.chosen
    assert {row["index"] for row in found["sub_networks"]} == {*result.pareto, outcome.chosen}
    assert len(as_json(capsys, folder, "--all")["sub_networks"]) == 12


@pytest.mark.parametrize("name", ["max_params_ratio", "max_macs_ratio"])
@pytest.mark.parametrize("limit", [0.3, 0.6, 1.0])
def test_a_limit_marks_the_best_within_it(finished, capsys, name, limit) -> None:
    folder, outcome = finished
    share = {"max_params_ratio": "parameters_share", "max_macs_ratio": "macs_share"}[name]
    best = max((row for row in outcome.table.rows if getattr(row, share) <= limit), key=lambda row: row.metric)
    found = as_json(capsys, folder, f"--{name}", limit)
    (chosen,) = (row for row in found["sub_networks"] if row["chosen"])
    assert chosen["index"] == found["chosen"] and chosen["metric"] == best.metric


def test_a_metric_marks_the_smallest_that_reaches_it(finished, capsys) -> None:
    folder, outcome = finished
    rows, largest = outcome.table.rows, outcome.table.largest
    bound = sorted(row.metric for row in rows)[6]
    smallest = min((row for row in rows if row.metric >= bound), key=lambda row: row.parameters_share)
    assert as_json(capsys, folder, "--min_metric", bound)["chosen"] == smallest.index
    within = [row for row in rows if row.metric > largest.metric - 0.1]
    cheapest = min(within, key=lambda row: row.macs_share)
    assert as_json(capsys, folder, "--max_metric_drop", 0.1)["chosen"] == cheapest.index
    refused(capsys, "accuracy of at least 2.0; the nearest has", folder, "--min_metric", 2)
    refused(capsys, "at most 1e-06 of the parameters", folder, "--max_params_ratio", 1e-6)
    refused(capsys, "--min_metric is nan", folder, "--min_metric", "nan")


def test_a_drop_is_counted_from_the_largest_beside_the_search(tmp_path, capsys) -> None:
    model = zoo.build("bert")
    sizes = RelativeSizes(SizeTable(model), 16)
    space = get_search_space("layer", describe(model))
    objectives = [error_objective("accuracy"), parameters_objective(sizes.table)]
    full = search(space, accuracy, objectives, size=sizes.params_ratio, method="random_search", num_samples=8)
    trials = tuple(trial for trial in full.trials if trial.sub_network != space.largest)
    reference = Evaluated(space.largest, space.encode(space.largest), {"accuracy": 0.99}, ())
    outcome = hand_over(
        type(full)(trials, full.objectives, full.reference),
        tmp_path,
        sizes=sizes,
        metric_name="accuracy",
        largest=space.largest,
        limits={"max_params_ratio": 0.9},
        report=lambda indices: {},
        save_model=lambda index, path: None,
        reference=reference,
    )
    best = max(trials, key=lambda trial: trial.metrics["accuracy"])
    drop = 0.99 - best.metrics["accuracy"] + 1e-6
    assert trials[as_json(capsys, tmp_path, "--max_metric_drop", drop)["chosen"]] == best
    assert outcome.table.largest.index == len(trials)


class Racer:
    """Gives up every third sub-network."""

    calls = 0

    def race(self, sub_network, known_costs, front):
        self.calls += 1
        if self.calls % 3 == 0:
            return Rejected("accuracy", 0.99, 10, 100, 0)
        return accuracy_of(sub_network)


def test_a_running_search_is_read_from_its_journal(tmp_path, capsys) -> None:
    storage = tmp_path / "run" / "search" / "journal.log"
    objectives = [OBJECTIVES[0], Objective("parameters", lambda sub_network, _: size_of(sub_network))]
    result = search(
        UnitsSpace(), Racer(), objectives, size=size_of, method="random_search", num_samples=20, storage=storage,
        race=True,
    )  # fmt: skip
    before = storage.read_bytes()
    found = as_json(capsys, tmp_path / "run")
    assert not found["finished"] and found["evaluations"] == 20
    assert found["rejected"] == sum(trial.rejected for trial in result.trials) == 6
    assert found["hypervolume"] == pytest.approx(result.hypervolume) and found["reference"] == list(result.reference)
    rows = {row["index"]: row for row in found["sub_networks"]}
    assert {index for index, row in rows.items() if row["on_front"]} == set(result.pareto)
    assert {i: tuple(row["costs"].values()) for i, row in rows.items()} == {i: result.trials[i].costs for i in rows}
    assert len(as_json(capsys, storage, "--all")["sub_networks"]) == 14

    chosen = as_json(capsys, tmp_path / "run", "--max_params_ratio", 0.5)["chosen"]
    within = [trial for trial in result.trials if trial.costs[1] <= 0.5 and not trial.rejected]
    assert result.trials[chosen].costs == min(trial.costs for trial in within)
    assert front(tmp_path / "run") == 0
    text = capsys.readouterr().out
    assert "20 sub-networks evaluated, 6 of them given up early" in text and "| net |" in text and "chosen" in text
    refused(capsys, "--min_metric 0.5 cannot be applied to a search that has not ended", storage, "--min_metric", 0.5)
    refused(capsys, "--max_macs_ratio 0.5 cannot be applied", storage, "--max_macs_ratio", 0.5)
    refused(capsys, "No sub-network evaluated so far has parameters", storage, "--max_params_ratio", 0.01)
    # A look at it changes nothing, not even that of a search whose last line is being written.
    assert storage.read_bytes() == before
    storage.write_bytes(before + b'{"op_code": 4, "wor')
    assert as_json(capsys, storage)["evaluations"] == 20
    assert storage.read_bytes() == before + b'{"op_code": 4, "wor'


def test_a_search_that_goes_on_is_pointed_out(finished, capsys, caplog) -> None:
    folder, _ = finished
    journal = folder / "search" / "journal.log"
    earlier = (folder / "search" / "summary.json").stat().st_mtime - 10
    os.utime(journal, (earlier, earlier))
    assert front(folder) == 0 and "went on" not in caplog.text
    os.utime(journal, (earlier + 60, earlier + 60))
    assert front(folder) == 0 and "The search went on after this was written" in caplog.text
    assert as_json(capsys, journal)["evaluations"] == 12


def test_what_is_no_search_is_refused(tmp_path, capsys) -> None:
    refused(capsys, "holds no search; give the output folder or the journal file", tmp_path)
    refused(capsys, "holds no search", tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
    (tmp_path / "journal.log").write_text("")
    refused(capsys, "has not evaluated a sub-network yet", tmp_path)
    for text in ("no journal\n", "{}\n", "[1]\n1\n", '{"op_code": 99, "worker_id": "x"}\n'):
        (tmp_path / "journal.log").write_text(text)
        refused(capsys, "is not the journal of a search", tmp_path)
