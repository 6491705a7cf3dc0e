"""Runs of several methods on one page: by which metric, and which of them are refused."""

import logging

import pytest

from hf_nas.report import compare_runs
from tests import zoo
from tests.report.compare.runs import compared, dense_run, dsp_run, record, results, search_run


def test_another_metric_is_that_of_the_chosen_one_alone(bert, tmp_path, caplog) -> None:
    outcome = search_run(tmp_path / "nas", bert, {"full": 0.85, "uniform half": 0.8, "one head left": 0.6})
    with caplog.at_level(logging.WARNING):
        page = compared(("nas", tmp_path / "nas"), metric_name="accuracy")
    assert [row.metric for row in page.rows] == [0.7]
    assert page.rows[0].parameters == outcome.table.chosen.parameters
    assert "2 of the 3 models of" in caplog.text and "have no accuracy and are left out" in caplog.text


def test_the_main_metric_is_one_that_all_have(bert, tmp_path) -> None:
    one = ("one", dsp_run(tmp_path / "one", bert, 5, accuracy=0.7, f1=0.8, loss=0.3))
    two = ("two", dsp_run(tmp_path / "two", bert, 5, accuracy=0.6, loss=0.3))
    assert compared(one).metric_name == "f1" and compared(one, two).metric_name == "accuracy"
    assert not compared(one, two, metric_name="loss").greater_is_better
    three = ("three", dsp_run(tmp_path / "three", bert, 5, bleu=30.0, loss=0.3))
    with pytest.raises(ValueError, match="no metric in common: 'one' has accuracy, f1, loss; 'three' has bleu, loss"):
        compared(one, three)
    with pytest.raises(ValueError, match=r"no metric 'f1' of 'two' in .*two', which has accuracy, loss; choose ano"):
        compared(one, two, metric_name="f1")
    regression = compared(("r", dsp_run(tmp_path / "r", bert, 5, mse=1.5)))
    assert regression.metric_name == "mse" and not regression.greater_is_better


def test_other_tasks_examples_and_models_are_refused(bert, tmp_path) -> None:
    one = ("one", dsp_run(tmp_path / "one", bert, 5, f1=0.8))
    other = tmp_path / "other"

    def second(message: str, **changes) -> None:
        record(other, **changes)
        with pytest.raises(ValueError, match=message):
            compared(one, ("other", other))

    dsp_run(other, bert, 4, f1=0.7)
    second("'one' in .* are on the task mrpc, those of 'other' in .* sst2; compare runs on one task", task_name="sst2")
    second("were made of the model some/base, .* other/base; compare runs that start", model_name_or_path="other/base")
    # Data may lie anywhere, and a pipelined run starts from what was made of the same model.
    dense_run(tmp_path / "dense", bert, f1=0.9)
    for model in ("dense", str(tmp_path / "dense"), "some/base"):
        record(other, data_dir="/elsewhere/mrpc", model_name_or_path=model)
        assert compared(one, ("other", other)).labels == ("one", "other")
    results(other, examples=7, f1=0.7)
    second("evaluated on so many examples: 40, those of 'other' .* 7; evaluate all of them on the same")
    results(other, examples=None, f1=0.7)
    assert compared(one, ("other", other)).rows[1].metric == 0.7
    wide = zoo.build("bert", intermediate_size=30)
    dense_run(tmp_path / "wide", wide, f1=0.9)
    with pytest.raises(ValueError, match="bert model of 3 layers, 12 heads and .* parameters; compare runs"):
        compared(one, ("wide", tmp_path / "wide"))


def test_runs_that_would_count_twice_are_refused(bert, tmp_path) -> None:
    one = dsp_run(tmp_path / "one", bert, 5, seed=1, f1=0.8)
    dsp_run(tmp_path / "two", bert, 5, seed=1, f1=0.7)
    with pytest.raises(ValueError, match="'.*one' is given 2 times; give it once"):
        compared(("a", one), ("b", one.parent / "." / "one"))
    with pytest.raises(ValueError, match="'.*one' and '.*two' are both 'dsp' with seed 1 and method=dsp num_of"):
        compared(("dsp", one), ("dsp", tmp_path / "two"))
    assert len(compared(("a", one), ("b", tmp_path / "two")).rows) == 2
    with pytest.raises(ValueError, match="There are no runs to compare"):
        compare_runs([])
