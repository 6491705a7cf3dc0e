"""The card of a small model: metadata that the Hub reads, numbers that are those of the run, texts that stay texts."""

import re
import shutil
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results

from hf_nas.profiling import Latency
from hf_nas.report import (
    CardFacts,
    RunFolder,
    add_profile,
    check_metadata,
    render_card,
    small_profile,
    write_model_card,
)
from hf_nas.report.base_model import BaseModel, hub_id, public_name
from hf_nas.report.card_facts import auto_class_of, pipeline_of, scores_of
from hf_nas.report.card_text import fenced, plain
from hf_nas.report.methods import method_of
from tests.report.runs import ARGUMENTS, make_pruning, make_search


EVIL = "<script>alert(1)</script> | a\n# b `c`"
MACHINE = {"device": "cpu", "processor": "x86_64", "threads": 1, "dtype": "float32", "attention": "sdpa"}


@pytest.fixture
def fake_time(monkeypatch) -> None:
    """The first model takes 8 ms, the second one 4."""

    def measure(models, **options):
        lengths = options["batch_size"], options["sequence_length"], options["decoder_length"]
        return [Latency((s, s, 2 * s, s), *lengths, MACHINE) for s in (0.008, 0.004)]

    monkeypatch.setattr(small_profile, "measure_latencies", measure)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A search whose chosen model is uneven, another whose sizes the stock configuration states, and a pruning."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as monkeypatch:
        make_search(folder / "even", monkeypatch)
        make_search(folder / "uneven", monkeypatch, uneven=True)
    make_pruning(folder / "pruned")
    return folder


@pytest.fixture
def folder(made, tmp_path) -> Path:
    """Copies, so that no test sees what another one wrote."""
    shutil.copytree(made, tmp_path / "runs")
    return tmp_path / "runs"


def base_folder(path: Path, card: str | None = None, config: str = '{"model_type": "bert"}') -> str:
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(config)
    if card is not None:
        (path / "README.md").write_text(card)
    return str(path)


def table_of(text: str, title: str) -> list[list[str]]:
    """The rows of the first table under a title."""
    part = text.split(f"## {title}\n")[1]
    lines = re.search(r"((?:^\|.*\|$\n?)+)", part, re.MULTILINE).group(1).splitlines()
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return [rows[0], *rows[2:]]


def test_metadata_of_a_search(folder) -> None:
    run = RunFolder.read(folder / "even")
    text = render_card(run, CardFacts.of(run, license="mit", tags=("mine",), languages=["en"]))
    check_metadata(text)
    data = yaml.safe_load(text.split("---\n")[1])
    assert data == ModelCard(text).data.to_dict()
    assert data["base_model"] == "somebody/some-bert" and data["base_model_relation"] == "finetune"
    assert (data["library_name"], data["license"], data["language"]) == ("transformers", "mit", ["en"])
    assert data["tags"] == ["hf_nas", "structured-pruning", "neural-architecture-search", "mine"]
    assert data["pipeline_tag"] == "text-classification" and data["datasets"] == ["nyu-mll/glue"]
    # Other names are none that the Hub knows.
    assert data["metrics"] == ["f1"]
    name, results = model_index_to_eval_results(data["model-index"])
    assert name == "even" and len(results) == 5
    values = {(each.dataset_split, each.metric_type): each.metric_value for each in results}
    held_out = "train (held out for selection)"
    assert values == {
        ("validation", "f1"): 0.7, ("validation", "combined_f1"): 0.25, ("second_one", "f1"): 0.125,
        (held_out, "f1"): 0.8, (held_out, "combined_f1"): 0.4,
    }  # fmt: skip
    assert {(each.dataset_type, each.dataset_config, each.dataset_name) for each in results} == {
        ("nyu-mll/glue", "mrpc", "MRPC")
    }
    named = next(each.metric_name for each in results if each.dataset_split == held_out)
    assert named.endswith("(selection set, on which sub-networks were compared)")


def test_scores_keep_both_sets_apart(folder) -> None:
    scores = {(score.split, score.metric): score for score in scores_of(RunFolder.read(folder / "even"))}
    assert scores["selection", "f1"].largest == 0.9 and scores["selection", "combined_f1"].largest == 0.45
    assert scores["validation", "f1"].largest == 0.5 and scores["validation", "combined_f1"].largest is None
    # Those of a pruning are what the script measured, without loss and speed.
    pruned = scores_of(RunFolder.read(folder / "pruned"))
    assert [(score.metric, score.value, score.split) for score in pruned] == [("f1", 0.75, "validation")]


def test_text_of_a_search(folder, fake_time) -> None:
    run = add_profile(RunFolder.read(folder / "uneven"))
    text = render_card(run, CardFacts.of(run, command="python run_glue.py --task_name mrpc"))
    dense, small = run.profile["models"]
    rows = {row[0]: row[1:] for row in table_of(text, "Size and speed")}
    assert rows["parameters"] == [
        f"{dense['parameters']['all']:,}", f"{small['parameters']['all']:,}",
        f"{small['parameters']['all'] / dense['parameters']['all']:.1%}",
    ]  # fmt: skip
    without = rows["parameters without embeddings"]
    assert without[1] == f"{small['parameters']['layers_and_head']:,}" != rows["parameters"][1]
    assert rows["operations (MACs) of 38 tokens"][0] == f"{dense['macs']:,}"
    bound = dense["macs"] / small["macs"]
    assert f"| latency | 8.00 ms ± 12 % | 4.00 ms ± 12 % | **2.00x** | {bound:.2f}x | {2 / bound:.0%} |" in text
    assert "Batches of 1, 38 tokens, float32, sdpa attention, on cpu" in text and "1 thread" in text
    rows = table_of(text, "Results")
    assert rows[0] == ["metric", "data", "this model", "largest sub-network"]
    assert ["f1", "validation", "0.7000", "0.5000"] in rows and ["f1", "selection", "0.8000", "0.9000"] in rows
    assert "15% of the training set" in text and "played no part in search and choice" in text
    counts = run.sub_network.counts()
    rows = table_of(text, "What is left of each layer")
    assert rows[0] == ["layer", "heads kept", "neurons kept"] and len(rows) == 4
    for row, heads, neurons in zip(rows[1:], counts[::2], counts[1::2]):
        assert row[1].startswith("gone" if heads is None else f"{heads} of 4"), row
        assert row[2].startswith("gone" if neurons is None else f"{neurons} of 24"), row
    assert "```bash\npython run_glue.py --task_name mrpc\n```" in text
    assert "import hf_nas" in text and "trust_remote_code=True" in text and "modeling_hf_nas.py" in text
    assert "![Metric against size of all evaluated sub-networks](front.png)" in text
    assert "https://arxiv.org/abs/2405.02267" in text


def test_a_stock_model_is_said_to_load_anywhere(folder) -> None:
    run = RunFolder.read(folder / "even")
    text = render_card(run, CardFacts.of(run, source="me/small"))
    assert "loads anywhere" in text and 'pipeline("text-classification", model="me/small")' in text
    assert "trust_remote_code" not in text and "modeling_hf_nas.py" not in text


def test_the_code_of_the_card_loads_the_model(folder) -> None:
    for name in ("even", "uneven"):
        run = RunFolder.read(folder / name)
        text = render_card(run, CardFacts.of(run, source=str(run.small), task="multiple-choice"))
        code = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
        assert len(code) == (1 if name == "even" else 2)
        found: dict = {}
        exec(code[0], found)
        assert found["model"].config.num_labels == 3
        assert sum(p.numel() for p in found["model"].parameters()) > 0


def test_without_a_profile_and_command_that_is_said(folder) -> None:
    run = RunFolder.read(folder / "even")
    text = render_card(run, CardFacts.of(run))
    assert "The command was not recorded." in text and "## Size and speed" not in text
    sizes = add_profile(run, measured=False)
    assert "Its latency was not measured." in render_card(sizes, CardFacts.of(sizes))


def test_a_pruning(folder) -> None:
    run = RunFolder.read(folder / "pruned")
    text = render_card(run, CardFacts.of(run))
    data = ModelCard(text).data.to_dict()
    assert "cofi" in data["tags"] and len(data["model-index"][0]["results"]) == 1
    assert "2 of 4 (0, 2)" in text and "5 of 24 |" in text and "front.png" not in text


@pytest.mark.parametrize(
    "report, tag",
    [
        ({"method": "dsp"}, "differentiable-subset-pruning"),
        ({"method": "voita"}, "head-pruning"),
        ({"method": "michel"}, "head-pruning"),
        ({"method": "new one"}, "new one"),
        ({"pruning_type": "hidden"}, "cofi"),
        ({}, None),
    ],
)
def test_methods_of_prunings(report: dict, tag: str | None, tmp_path) -> None:
    found = method_of(RunFolder(tmp_path, pruning=report))
    assert [method.tag for method in found] == ([] if tag is None else [tag])


def test_methods_of_searches(folder) -> None:
    run = RunFolder.read(folder / "even")
    assert [method.tag for method in method_of(run)] == ["neural-architecture-search"]
    assert "super-network" in method_of(run)[0].text
    moved = RunFolder(run.folder, outcome=run.outcome, arguments={"importance": "movement"})
    assert [method.tag for method in method_of(moved)] == ["neural-architecture-search", "movement-pruning"]
    (run.folder / "candidates").mkdir()
    assert "fine-tuned by itself" in method_of(run)[0].text


def test_the_base_and_its_licence(tmp_path) -> None:
    link = "https://example.org/l"
    card = f"---\nlicense: other\nlicense_name: my-license\nlicense_link: {link}\nlanguage: en\n---\n# Base\n"
    found = BaseModel.read(base_folder(tmp_path / "deep" / "base", card))
    # A folder of this machine is no name on the Hub, and its place is nobody's business.
    assert found.repository is None and found.name == "deep/base" and found.languages == ("en",)
    assert found.license == {
        "license": "other", "license_name": "my-license", "license_link": "https://example.org/l"
    }  # fmt: skip
    assert BaseModel.read(str(tmp_path / "deep" / "base"), "me/base").repository == "me/base"
    of_config = BaseModel.read(base_folder(tmp_path / "b", config='{"license": "mit"}'))
    assert of_config.license == {"license": "mit"}
    for broken in ("---\nlicense: [\n---\n", "no metadata", "---\n- 1\n---\n", "---\nlicense: 3\n---\n", "\x00"):
        assert BaseModel.read(base_folder(tmp_path / "c", broken)).license == {}
    assert BaseModel.read("somebody/some-bert").repository == "somebody/some-bert"
    assert BaseModel.read("no name / at all").repository is None
    with pytest.raises(ValueError, match="'a/b/c' cannot be the name of a model on the Hub"):
        BaseModel.read("x", "a/b/c")


def test_an_unknown_licence_is_said_to_be_unknown(folder, tmp_path) -> None:
    run = RunFolder.read(folder / "even")
    unknown = render_card(run, CardFacts.of(run, base=base_folder(tmp_path / "base")))
    data = ModelCard(unknown).data.to_dict()
    assert data["license"] == "unknown" and "base_model" not in data and "base_model_relation" not in data
    assert "Unknown: neither the card nor the configuration of a local copy of" in unknown
    assert str(tmp_path) not in unknown
    known = base_folder(tmp_path / "known", "---\nlicense: apache-2.0\nlanguage: [en, de]\n---\n")
    text = render_card(run, CardFacts.of(run, base=known, repository="google-bert/bert-base-cased"))
    data = ModelCard(text).data.to_dict()
    assert (data["license"], data["language"]) == ("apache-2.0", ["en", "de"])
    assert data["base_model"] == "google-bert/bert-base-cased" and "apache-2.0, that of" in text


def test_facts_are_kept_for_the_next_card(folder) -> None:
    run = RunFolder.read(folder / "even")
    facts = CardFacts.of(run, name="mine", command="python a.py", dataset="Mine", dataset_id="me/data", tags=["t"])
    facts.save(run, "somebody/some-bert")
    again = RunFolder.read(run.folder)
    assert CardFacts.of(again) == facts
    assert CardFacts.of(again, name="other").name == "other"
    assert write_model_card(again, facts) == run.small / "README.md"


def test_data_that_the_hub_does_not_know(folder, tmp_path) -> None:
    run = RunFolder.read(folder / "even")
    text = render_card(run, CardFacts.of(run, dataset="My own data!", dataset_id="not a/name/at all"))
    data = ModelCard(text).data.to_dict()
    assert "datasets" not in data and data["model-index"][0]["results"][0]["dataset"]["name"] == "My own data!"
    nameless = RunFolder(run.folder, run.small, run.sub_network, run.outcome)
    data = ModelCard(render_card(nameless, CardFacts.of(nameless))).data.to_dict()
    # Results without data are refused by the Hub.
    assert "model-index" not in data


def test_texts_stay_texts(tmp_path, monkeypatch) -> None:
    folder = make_search(tmp_path / "run", monkeypatch, metric="<b>|f1", arguments={**ARGUMENTS, "search_space": EVIL})
    run = RunFolder.read(folder)
    text = render_card(run, CardFacts.of(run, name=EVIL, dataset=EVIL, command=f"python a.py '{EVIL}' ``` ````"))
    body = text.split("---\n", 2)[2]
    # In the code they are shown as they are.
    outside = re.sub(r"(?ms)^(`{3,}).*?^\1$", "", body)
    assert "\\<script\\>" in outside and not re.search(r"(?<!\\)<script", outside)
    assert all(len(row) == 4 for row in table_of(text, "Results"))
    assert "\n# b" not in outside and "`````bash" in body
    assert ModelCard(text).data.to_dict()["model-index"][0]["name"] == EVIL
    assert plain("a|b\n<c>") == "a\\|b \\<c\\>" and fenced("x").startswith("```\n")


def test_metadata_that_the_hub_would_refuse() -> None:
    for text, message in (
        ("---\nlibrary_name: [\n---\n", "are damaged"),
        ("---\nlibrary_name: transformers\nlicense: mit\nbase_model: a/b/c\n---\n", "'a/b/c', which the Hub refuses"),
        ("---\nlicense: mit\n---\n", "library_name None"),
        (
            "---\nlibrary_name: transformers\nlicense: mit\nmodel-index:\n- name: x\n  results:\n  - a: 1\n---\n",
            "damaged",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            check_metadata(text)


def test_no_card_without_a_small_model(folder) -> None:
    shutil.rmtree(folder / "even" / "extracted")
    run = RunFolder.read(folder / "even")
    with pytest.raises(ValueError, match="has no small model yet"):
        render_card(run, CardFacts.of(run))


def test_names() -> None:
    assert hub_id("bert-base-cased") == "bert-base-cased" and hub_id("a/b/c") is None and hub_id(".") is None
    assert public_name("/home/me/models/bert") == "models/bert" and public_name("a/b") == "a/b"
    assert pipeline_of("BertForQuestionAnswering") == "question-answering" and pipeline_of("T5Model") is None
    assert auto_class_of("BertForMultipleChoice") == "AutoModelForMultipleChoice"
    assert auto_class_of("BertModel") == "AutoModel"
