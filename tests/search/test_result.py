import csv
import json
import math

import pytest

from hf_nas.search import Evaluated, SearchResult, choose
from hf_nas.search.result import pack_encoding, unpack_encoding
from tests.search.problems import UnitsSpace, size_of


SPACE = UnitsSpace(layers=2, units=4)


def make(*points):
    """A result of (encoding, accuracy) pairs."""
    trials = []
    for encoding, accuracy in points:
        sub_network = SPACE.decode(encoding)
        error = 1.0 if math.isnan(accuracy) else 1 - accuracy
        metrics = {"accuracy": accuracy, "loss": error}
        trials.append(Evaluated(sub_network, encoding, metrics, (error, size_of(sub_network)), 0.5))
    return SearchResult(tuple(trials), ("error", "size"), (1.0, 1.05), "nsga2", "units", 7)


# Sizes 1, 1/4, 5/8, 1/2, 3/4.
RESULT = make(((3, 3), 0.90), ((0, 0), 0.40), ((2, 1), 0.86), ((1, 1), 0.80), ((2, 2), math.nan))


def pick(**demands):
    return choose(RESULT, params_ratio=size_of, macs_ratio=size_of, metric_name="accuracy", **demands)


def test_front_and_volume():
    assert RESULT.pareto == (0, 1, 2, 3)
    assert RESULT.hypervolume == pytest.approx(0.05 * 0.9 + 0.375 * 0.86 + 0.125 * 0.8 + 0.25 * 0.4)


def test_files_round_trip(tmp_path):
    RESULT.save_json(tmp_path / "deep" / "result.json")
    text = (tmp_path / "deep" / "result.json").read_text()
    data = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert data["pareto"] == [0, 1, 2, 3] and all(type(index) is int for index in data["pareto"])
    loaded = SearchResult.load(tmp_path / "deep" / "result.json", SPACE.structure)
    assert math.isnan(loaded.trials[4].metrics["accuracy"])
    assert loaded.to_dict() == RESULT.to_dict()
    assert [t.sub_network for t in loaded.trials] == [t.sub_network for t in RESULT.trials]
    assert [SPACE.encode(t.sub_network) for t in loaded.trials] == [t.encoding for t in RESULT.trials]
    with pytest.raises(ValueError, match="Not a search result: its 'format' is None"):
        SearchResult.from_dict({})


def test_csv(tmp_path):
    RESULT.save_csv(tmp_path / "result.csv")
    rows = list(csv.DictReader((tmp_path / "result.csv").open()))
    assert [row["pareto"] for row in rows] == ["1", "1", "1", "1", "0"]
    assert float(rows[2]["cost.size"]) == 0.625 and float(rows[2]["metric.accuracy"]) == 0.86


def test_encodings_round_trip():
    for encoding in ((), (3, 0, 15), tuple(i % 3072 for i in range(40_000)), (70_000,) * 300):
        assert unpack_encoding(pack_encoding(encoding)) == encoding
    assert pack_encoding((3, 0, 15)) == "3,0,15"


def test_choice():
    assert pick() == 3
    assert pick(max_params_ratio=0.7) == 2
    assert pick(max_macs_ratio=0.5) == 3
    assert pick(max_params_ratio=0.7, max_macs_ratio=0.3) == 1
    assert pick(min_metric=0.85) == 2
    assert pick(min_metric=0.0) == 1
    assert pick(min_metric=0.8, max_params_ratio=0.99) == 3
    loss = {"params_ratio": size_of, "macs_ratio": size_of, "metric_name": "loss", "greater_is_better": False}
    assert choose(RESULT, min_metric=0.15, **loss) == 2


def test_choice_is_among_all_trials_and_ties_go_to_the_smaller():
    result = make(((3, 3), 0.9), ((2, 3), 0.9), ((3, 2), 0.9))
    options = {"params_ratio": size_of, "macs_ratio": lambda _: 0.5, "metric_name": "accuracy"}
    assert choose(result, min_metric=0.9, **options) == 1
    assert choose(result, max_macs_ratio=1, **options) == 1
    # By MACs the second one is too large, and the dominated third one takes its place.
    macs = dict(zip((trial.sub_network for trial in result.trials), (1.0, 0.9, 0.6)))
    options = {"params_ratio": size_of, "macs_ratio": macs.__getitem__, "metric_name": "accuracy"}
    assert choose(result, max_macs_ratio=0.7, **options) == 2


def test_demands_that_nothing_meets_name_the_nearest():
    with pytest.raises(ValueError, match="at most 0.1 of the parameters; the smallest there is has 0.2500"):
        pick(max_params_ratio=0.1)
    with pytest.raises(ValueError, match=r"at most 0.1 of the MACs \(of the 3 that meet .*has 0.2500"):
        pick(max_params_ratio=0.7, max_macs_ratio=0.1)
    with pytest.raises(ValueError, match="accuracy of at least 0.95; the nearest has 0.9000"):
        pick(min_metric=0.95)
    with pytest.raises(ValueError, match="no metric 'f1' but"):
        choose(RESULT, params_ratio=size_of, macs_ratio=size_of, metric_name="f1", min_metric=0.5)
    with pytest.raises(ValueError, match="evaluated no sub-network"):
        choose(make(), params_ratio=size_of, macs_ratio=size_of, metric_name="accuracy")
