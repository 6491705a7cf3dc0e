"""Hypervolume over evaluations of all search methods, and what a proposal costs.

On the closed-form problem (30 dimensions of 8 choices, three instances; a folder with `problem.py` and the reference
fronts `ideal_<instance>.npy`), or with --table on pre-evaluated sub-networks of a real super-network. A table is

- a CSV file with a column `choice.<dimension>` for each dimension (a number) and then a column `cost.<objective>` for
  each objective, the error first; one row a sub-network, or
- the `result.json` of a search, best one by random_search with many evaluations.

A proposal that is not in the table is replaced by the row that is closest to it. Every search starts from the largest,
the smallest and 18 sub-networks of evenly spread sizes (of the second objective). With --output, searches that are in
that file are not run again, so a killed benchmark continues, and more seeds or methods can be added.
"""

import argparse
import csv
import importlib.util
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from hf_nas.files import write_json
from hf_nas.search import SearchResult, hypervolume, pareto_indices
from hf_nas.search.methods import get_search_method
from hf_nas.search.result import Evaluated
from hf_nas.search.samplers import ParameterSpace
from hf_nas.space.base import Encoding
from hf_nas.space.sampling import SizeStratifiedSampler


METHODS = ("model_based", "nsga2", "local_search", "morea", "random_search")
PROBLEM = Path(__file__).resolve().parents[1] / ".." / "shared" / "golden" / "search_problem"
DESIGN_SIZE = 20


class TableSpace(ParameterSpace):
    """The rows of a table: every encoding stands for the row closest to it."""

    def __init__(self, choices: dict[str, Sequence[float]], rows: np.ndarray):
        super().__init__(choices)
        self._rows = rows
        self._ranges = np.maximum([len(values) - 1 for values in choices.values()], 1)

    def nearest(self, encoding: Sequence[int]) -> int:
        """Index of the row closest to an encoding."""
        return int((np.abs(self._rows - np.asarray(encoding)) / self._ranges).sum(axis=1).argmin())

    def decode(self, encoding: Sequence[int]):
        """The sub-network of the closest row."""
        return super().decode(self._rows[self.nearest(encoding)])


class Problem:
    """What is searched: a space, the costs of an encoding, and the volume that counts as 1."""

    def __init__(self, space: ParameterSpace, costs: Callable[[Encoding], np.ndarray], reference, best: float):
        self.space = space
        self.costs = costs
        self.reference = tuple(float(bound) for bound in reference)
        self.best = best

    @classmethod
    def closed_form(cls, folder: Path, instance: int) -> "Problem":
        """An instance of the closed-form problem."""
        spec = importlib.util.spec_from_file_location("problem", folder / "problem.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        problem = module.Problem(instance)
        space = ParameterSpace({f"x{index}": range(module.K) for index in range(module.D)})
        best = hypervolume(np.load(folder / f"ideal_{instance}.npy"), problem.ref)
        return cls(space, lambda encoding: problem(np.asarray(encoding)), problem.ref, best)

    @classmethod
    def table(cls, path: Path, reference: Sequence[float] | None) -> "Problem":
        """A table of pre-evaluated sub-networks."""
        names, values, costs = _read_result(path) if path.suffix == ".json" else _read_csv(path)
        choices = [np.unique(column) for column in values.T]
        rows = np.stack([np.searchsorted(own, column) for own, column in zip(choices, values.T)], axis=1)
        space = TableSpace({name: own.tolist() for name, own in zip(names, choices)}, rows)
        reference = costs.max(axis=0) * 1.05 if reference is None else reference
        return cls(space, lambda encoding: costs[space.nearest(encoding)], reference, hypervolume(costs, reference))

    def run(self, name: str, num_samples: int, seed: int, noise: float) -> tuple[list[float], list[float], float]:
        """Relative hypervolume after each evaluation, the same for the front as recorded, CPU seconds a proposal.

        They are of the true costs of the sub-networks on the front. Under noise the first front is the one by
        `SearchMethod.expected_costs`; without, both are the same.
        """
        space = self.space

        def known_costs(sub_network):
            return self.costs(space.to_values(sub_network))[1:]

        stratified = SizeStratifiedSampler(space, lambda sub_network: float(known_costs(sub_network)[0]))
        method = get_search_method(name, space, stratified, known_costs=known_costs, reference=self.reference)
        errors = np.random.default_rng([seed, 1])
        history: list[Evaluated] = []
        true_costs, expected, recorded, seconds = [], [], [], 0.0
        waiting = stratified.design(DESIGN_SIZE, seed)
        seen = set()
        method.is_candidate = lambda sub_network: sub_network not in seen
        while len(history) < num_samples:
            rng = np.random.default_rng([seed, len(history)])
            start = time.process_time()
            encoding = waiting.pop(0) if waiting else method.propose(history, rng)
            for _ in range(100):
                if space.decode(encoding) not in seen:
                    break
                encoding = method.propose(history, rng)
            seconds += time.process_time() - start
            while space.decode(encoding) in seen:
                encoding = space.sample(rng)
            sub_network = space.decode(encoding)
            encoding = tuple(space.to_values(sub_network))
            seen.add(sub_network)
            costs = np.array(self.costs(encoding), dtype=float)
            true_costs.append(costs)
            noisy = (costs[0] + errors.normal(0, noise), *costs[1:]) if noise else tuple(costs)
            history.append(Evaluated(sub_network, encoding, {}, tuple(float(cost) for cost in noisy)))
            recorded.append(self._volume(true_costs, [trial.costs for trial in history]))
            expected.append(self._volume(true_costs, method.expected_costs(history)) if noise else recorded[-1])
        return expected, recorded, seconds / max(num_samples - DESIGN_SIZE, 1)

    def _volume(self, true_costs: Sequence[np.ndarray], costs: Sequence[Sequence[float]]) -> float:
        front = pareto_indices(costs)
        return hypervolume(np.array(true_costs)[front], self.reference) / self.best


def _read_csv(path: Path) -> tuple[list[str], np.ndarray, np.ndarray]:
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        names = [name for name in reader.fieldnames or () if name.startswith("choice.")]
        objectives = [name for name in reader.fieldnames or () if name.startswith("cost.")]
        rows = list(reader)
    if not names or len(objectives) < 2 or not rows:
        raise ValueError(
            f"{path} has {len(rows)} rows, {len(names)} columns 'choice.<dimension>' and {len(objectives)} columns "
            "'cost.<objective>'; give rows with one of the former or more and two of the latter or more."
        )
    values = np.array([[float(row[name]) for name in names] for row in rows])
    return names, values, np.array([[float(row[name]) for name in objectives] for row in rows])


def _read_result(path: Path) -> tuple[list[str], np.ndarray, np.ndarray]:
    trials = [trial for trial in SearchResult.load(path).trials if np.isfinite(trial.costs).all()]
    values = np.array([trial.encoding for trial in trials])
    return [f"{index}" for index in range(values.shape[1])], values, np.array([trial.costs for trial in trials])


def _settings(arguments: argparse.Namespace) -> dict[str, object]:
    """What two searches must have in common to be compared."""
    return {
        "problem": str(arguments.table or "closed-form"),
        "num_samples": arguments.num_samples,
        "noise": arguments.noise,
        "reference": arguments.reference,
    }


def _finished(arguments: argparse.Namespace) -> dict[str, list[dict]]:
    """The searches that an earlier run of this benchmark wrote, by method and in the order of their seeds."""
    if arguments.output is None or not arguments.output.exists():
        return {}
    earlier = json.loads(arguments.output.read_text(encoding="utf-8"))
    if earlier.get("settings") != _settings(arguments):
        raise SystemExit(
            f"{arguments.output} holds searches of {earlier.get('settings')}, this is {_settings(arguments)}; "
            "give another --output."
        )
    return earlier["methods"]


def _row(name: str, curves: Sequence[Sequence[float]], shown: Sequence[int]) -> str:
    cells = [f"{np.median(column):.3f} ({column.min():.3f})" for column in np.array(curves)[:, np.array(shown) - 1].T]
    return f"{name:14}" + "".join(f"{cell:>16}" for cell in cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problem", type=Path, default=PROBLEM, help="folder of the closed-form problem")
    parser.add_argument("--table", type=Path, default=None, help="CSV or result.json of pre-evaluated sub-networks")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), help="ehvi takes over 20 minutes a seed")
    parser.add_argument("--num_samples", type=int, default=200, help="evaluations a search")
    parser.add_argument("--seeds", type=int, default=10, help="searches; the closed-form instances take turns")
    parser.add_argument("--noise", type=float, default=0.0, help="standard deviation of noise on the error")
    parser.add_argument("--reference", type=float, nargs="+", default=None, help="of the table's hypervolume")
    parser.add_argument("--output", type=Path, default=None, help="write the numbers here as JSON")
    arguments = parser.parse_args()
    if arguments.table is None:
        problems = [Problem.closed_form(arguments.problem, instance) for instance in range(3)]
    else:
        problems = [Problem.table(arguments.table, arguments.reference)]
    shown = [count for count in (50, 100, 150, 200, 300, 500) if count < arguments.num_samples]
    shown.append(arguments.num_samples)
    print("relative hypervolume, median over seeds (lowest)")
    print(f"{'method':14}" + "".join(f"{count:>16}" for count in shown) + f"{'CPU s/proposal':>16}", flush=True)
    done = _finished(arguments)
    for name in arguments.methods:
        runs = done.setdefault(name, [])
        for seed in tqdm(range(len(runs), arguments.seeds), desc=name, leave=False):
            problem = problems[seed % len(problems)]
            curve, recorded, cost = problem.run(name, arguments.num_samples, seed, arguments.noise)
            runs.append({"hypervolume": curve, "as_recorded": recorded, "cpu_seconds_a_proposal": cost})
            if arguments.output is not None:
                write_json(arguments.output, {"settings": _settings(arguments), "methods": done})
        runs = runs[: arguments.seeds]
        cost = np.median([run["cpu_seconds_a_proposal"] for run in runs])
        curves = [run["hypervolume"] for run in runs]
        print(_row(name, curves, shown) + f"{cost:>16.4f}", flush=True)
        if curves != (recorded := [run["as_recorded"] for run in runs]):
            print(_row("  as recorded", recorded, shown), flush=True)


if __name__ == "__main__":
    main()
