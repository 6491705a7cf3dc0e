"""The benchmark of search methods, on a table of its own."""

import csv
import json
import sys

import pytest

from hf_nas.search import search
from tests.search.problems import OBJECTIVES, UnitsSpace, accuracy_of, size_of


@pytest.fixture
def benchmark(load_benchmark, monkeypatch):
    module = load_benchmark("search_methods")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["search_methods.py", *map(str, arguments)])
        module.main()

    module.run = run
    return module


@pytest.fixture
def result():
    return search(UnitsSpace(), accuracy_of, OBJECTIVES, size=size_of, num_samples=80)


def curves_of(numbers, method):
    return [run["hypervolume"] for run in numbers[method]]


def write_table(path, result):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*(f"choice.u{i}" for i in range(4)), "cost.error", "cost.size"])
        for trial in result.trials:
            writer.writerow([*(10 * index for index in trial.encoding), *trial.costs])


def test_methods_on_a_table(benchmark, result, tmp_path, capsys):
    table, output = tmp_path / "table.csv", tmp_path / "numbers.json"
    write_table(table, result)
    methods = ("model_based", "random_search")
    arguments = ("--num_samples", 40, "--seeds", 2, "--output", output, "--reference", 1.0, 1.05)
    benchmark.run("--table", table, "--methods", *methods, *arguments)
    printed = capsys.readouterr().out
    numbers = json.loads(output.read_text())["methods"]
    for method in methods:
        assert method in printed
        for curve in curves_of(numbers, method):
            assert len(curve) == 40 and curve == sorted(curve) and 0 < curve[0] and curve[-1] <= 1 + 1e-9
    # Half of the rows are enough for nearly all of their front.
    assert min(curve[-1] for curve in curves_of(numbers, "model_based")) > 0.99


def test_a_second_run_searches_only_what_is_missing(benchmark, result, tmp_path, monkeypatch):
    table, output = tmp_path / "table.csv", tmp_path / "numbers.json"
    write_table(table, result)
    arguments = ("--table", table, "--num_samples", 30, "--output", output, "--methods", "random_search")
    benchmark.run(*arguments, "--seeds", 1)
    first = json.loads(output.read_text())["methods"]["random_search"]
    searched = []
    run = benchmark.Problem.run
    monkeypatch.setattr(
        benchmark.Problem, "run", lambda self, *given: searched.append(given[:3:2]) or run(self, *given)
    )
    benchmark.run(*arguments, "local_search", "--seeds", 2)
    assert searched == [("random_search", 1), ("local_search", 0), ("local_search", 1)]
    assert json.loads(output.read_text())["methods"]["random_search"][0] == first[0]
    with pytest.raises(SystemExit, match="give another --output"):
        benchmark.run(*arguments, "--noise", 0.1)


def test_every_row_is_evaluated_in_the_end_and_a_result_file_is_a_table_too(benchmark, result, tmp_path):
    result.save_json(tmp_path / "result.json")
    write_table(tmp_path / "table.csv", result)
    for name in ("result.json", "table.csv"):
        problem = benchmark.Problem.table(tmp_path / name, (1.0, 1.05))
        assert problem.best == pytest.approx(result.hypervolume)
        curve, _, _ = problem.run("local_search", num_samples=80, seed=0, noise=0.0)
        assert curve[-1] == pytest.approx(1.0)


def test_tables_without_what_is_needed_are_refused(benchmark, tmp_path):
    table = tmp_path / "table.csv"
    table.write_text("choice.a,cost.error\n1,0.5\n")
    with pytest.raises(ValueError, match="1 rows, 1 columns 'choice.<dimension>' and 1 columns"):
        benchmark.run("--table", table)
