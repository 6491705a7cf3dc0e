"""What benchmarks/heads.py says of published claims, by hand; its runs are the example scripts' own."""

import argparse
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def heads(load_benchmark) -> ModuleType:
    return load_benchmark("heads")


def verdicts(heads: ModuleType, scores: dict, dense=(90.0, 92.0)) -> dict[tuple[str, int], str]:
    return {(claim.text, claim.heads): claim.verdict for claim in heads.check_claims(scores, dense, 72)}


def test_claims_are_compared_with_the_spread_over_seeds(heads) -> None:
    scores = {
        # Differences to ste: 3 and 1, 0 and -2, -3 and -4.
        "dsp-joint": {36: [83, 81], 24: [80, 78], 12: [67, 66]},
        "ste": {36: [80, 80], 24: [80, 80], 12: [70, 70]},
        "voita": {36: [79, 82], 24: [70, 70]},
    }
    assert verdicts(heads, scores) == {
        ("dsp-joint >= ste", 36): "holds", ("dsp-joint >= ste", 24): "within the spread",
        ("dsp-joint >= ste", 12): "does not hold",
        ("ste = voita", 36): "holds", ("ste = voita", 24): "does not hold",
        ("dsp-joint >= voita", 36): "holds", ("dsp-joint >= voita", 24): "holds",
    }  # fmt: skip
    (claim,) = (
        claim for claim in heads.check_claims(scores, (90.0, 92.0), 72) if claim.text == "dsp-joint >= ste"
        and claim.heads == 36
    )  # fmt: skip
    assert claim.difference == 2 and claim.deviation == pytest.approx(2**0.5)


def test_few_heads_and_all_heads(heads) -> None:
    scores = {
        "dsp-pipelined": {72: [90.0, 91.0], 36: [80, 80], 24: [75, 74], 12: [70, 72], 6: [60, 50]},
        "michel": {72: [80.0, 81.0], 36: [50, 50], 24: [70, 70], 12: [70.5, 70.5], 6: [60, 60]},
    }
    # With a third of the heads or fewer it must be better by more than the spread.
    assert verdicts(heads, scores) == {
        ("dsp-pipelined > michel", 24): "holds", ("dsp-pipelined > michel", 12): "within the spread",
        ("dsp-pipelined > michel", 6): "within the spread",
        ("dsp-pipelined = dense", 72): "holds", ("michel = dense", 72): "does not hold",
    }  # fmt: skip
    one = heads.check_claims({"ste": {72: [80.0]}}, [80.0], 72)
    assert [(claim.verdict, claim.deviation) for claim in one] == [("not judged", None)]


def test_numbers_of_heads(heads) -> None:
    assert heads.parse_heads(["all", "6", "36", "72"], 72) == [72, 36, 6]
    for given in (["0"], ["73"], ["many"]):
        with pytest.raises(SystemExit, match="give numbers from 1 to 72, or all"):
            heads.parse_heads(given, 72)


def test_one_front_has_all_numbers_and_finished_runs_are_not_repeated(heads, tmp_path, monkeypatch) -> None:
    started = []

    def run_command(command: list[str], folder: Path, threads: int) -> None:
        flags = dict(zip(command, command[1:]))
        started.append((folder.name, flags["--num_train_epochs"], flags["--model_name_or_path"], command))
        (folder / "eval_results.json").write_text('{"eval_f1": 0.5}')
        if "--heads_per_step" in flags:
            step = int(flags["--heads_per_step"])
            points = ", ".join(f'{{"heads": {number}, "eval_f1": {number / 100}}}' for number in range(72, -1, -step))
            (folder / "front.json").write_text(f'{{"points": [{points}]}}')

    monkeypatch.setattr(sys.modules["script_runs"], "run_command", run_command)
    settings = {
        "output_dir": tmp_path, "data_root": tmp_path / "data", "model": "base", "epochs": 6, "max_train_samples": 64,
        "threads": 1, "device": "cpu", "bf16": False,
    }  # fmt: skip
    runs = heads.Runs(argparse.Namespace(**settings), "mrpc", 3)
    for _ in range(2):
        assert runs.scores("michel", [72, 36, 12], 72) == pytest.approx([72, 36, 12])
        assert runs.scores("dsp-pipelined", [12], 72) == [50]
        assert runs.scores("ste", [72, 12], 72) == [50, 50]  # with all heads it is the dense run
    assert [each[:3] for each in started] == [
        ("mrpc-dense-3", "6", "base"),
        ("mrpc-michel-12-3", "1", str(tmp_path / "mrpc-dense-3")),
        ("mrpc-dsp-pipelined-12-3", "2", str(tmp_path / "mrpc-dense-3")),
        ("mrpc-ste-12-3", "6", "base"),
    ]
    assert runs.folders("michel", [72, 36, 12], 72) == [tmp_path / "mrpc-michel-12-3"]
    assert runs.folders("ste", [72, 36, 12], 72) == [tmp_path / "mrpc-ste-36-3", tmp_path / "mrpc-ste-12-3"]
    assert "--use_ste" in started[3][3] and "--do_train" not in started[1][3] and "64" in started[3][3]
    # Fewer numbers on the same front are no other run, nor are more threads.
    assert heads.Runs(argparse.Namespace(**settings | {"threads": 2}), "mrpc", 3).scores("michel", [72, 60], 72)
    assert len(started) == 4


@pytest.mark.parametrize(
    "change", [{"epochs": 3}, {"max_train_samples": 32}, {"model": "other"}, {"data_root": "b"}, {"bf16": True}]
)
def test_runs_with_other_flags_are_set_aside_and_made_again(heads, tmp_path, monkeypatch, capsys, change) -> None:
    started = []

    def run_command(command: list[str], folder: Path, threads: int) -> None:
        assert [path.name for path in folder.iterdir()] == ["benchmark.json"]  # nothing of another run is there
        started.append(folder.name)
        (folder / "eval_results.json").write_text(f'{{"eval_f1": {len(started) / 100}}}')
        (folder / "front.json").write_text(f'{{"points": [{{"heads": 72, "eval_f1": {len(started) / 100}}}]}}')

    monkeypatch.setattr(sys.modules["script_runs"], "run_command", run_command)
    settings = {
        "output_dir": tmp_path, "data_root": tmp_path, "model": "base", "epochs": 6, "max_train_samples": 64,
        "threads": 1, "device": "cpu", "bf16": False,
    }  # fmt: skip
    first = heads.Runs(argparse.Namespace(**settings), "mrpc", 3)
    settings = settings | change | {"data_root": tmp_path / change.get("data_root", "")}
    second = heads.Runs(argparse.Namespace(**settings), "mrpc", 3)
    assert first.scores("michel", [72], 72) == [pytest.approx(2)] and capsys.readouterr().out == ""
    # michel has the same flags, but starts from another dense model.
    for _ in range(2):
        assert second.scores("michel", [72], 72) == [pytest.approx(4)]
    assert started == ["mrpc-dense-3", "mrpc-michel-72-3"] * 2
    assert "mrpc-michel-72-3' holds a run with other flags (" in capsys.readouterr().out
    assert (tmp_path / "mrpc-dense-3.other-1" / "eval_results.json").read_text() == '{"eval_f1": 0.01}'
    (tmp_path / "mrpc-dense-3" / "benchmark.json").unlink()  # of which nobody knows how it was made
    assert second.dense() == pytest.approx(5) and (tmp_path / "mrpc-dense-3.other-2").is_dir()
