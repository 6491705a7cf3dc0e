"""The files of published searches, against recordings of NNCF 2.x and by themselves."""

import json
import math
from itertools import combinations
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from hf_nas.profiling import SizeTable
from hf_nas.search.old_files import read_caches, read_search_progression, write_front, write_old_files
from hf_nas.search.result import Evaluated, SearchResult
from hf_nas.search.selection import choose, published_demands
from hf_nas.search.width_groups import WidthGroups
from hf_nas.space import CustomSpace
from hf_nas.subnetwork import NORM_ONLY, SubNetwork


GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "golden" / "nncf2"
needs_golden = pytest.mark.skipif(not GOLDEN.exists(), reason="../shared/golden/nncf2 is not there")
WIDTHS = ([192, 128, 64], [192, 64], [192, 128], [160, 100, 40], [160, 66, 14], [160, 121, 90, 33])
CHOICES = {"attention": ([3, 2, 1], [3, 1], [3, 2]), "feed_forward": WIDTHS[3:]}


@pytest.fixture(scope="module")
def sizes():
    """The network of the recordings: 3 layers, heads of 64, 160 neurons."""
    config = BertConfig(
        vocab_size=50, hidden_size=192, num_hidden_layers=3, num_attention_heads=3, intermediate_size=160, num_labels=2
    )
    with torch.device("meta"):
        return SizeTable(BertForSequenceClassification(config))


@pytest.fixture
def groups(sizes):
    return WidthGroups.of(sizes.structure, widths=WIDTHS)


@pytest.fixture
def skipping(groups):
    return WidthGroups.of(groups.structure, widths=WIDTHS, blocks=groups.names)


@pytest.fixture
def macs(sizes):
    return lambda sub_network: sizes.macs(sub_network, 32)


def trial(sub_network, **metrics):
    return Evaluated(sub_network, (), metrics, (1 - metrics.get("accuracy", 0), 1.0))


def test_published_example_of_indices(skipping):
    assert skipping.upper_bounds == (2, 1, 1, 2, 2, 3, 63)
    found = skipping.decode((2, 1, 0, 1, 2, 3, 5))
    kept = dict(zip((f"encoder.{i}.attention" for i in range(3)), (1, 1, 3)))
    kept |= dict(zip((f"encoder.{i}.feed_forward" for i in range(3)), (100, 14, NORM_ONLY)))
    assert found == SubNetwork.of(skipping.structure, kept)
    assert skipping.configuration(found) == ({0: 64, 1: 64, 2: 192, 3: 100, 4: 14, 5: 160}, (5,))
    # A skipped sub-layer has no width of its own.
    assert skipping.encode(found) == (2, 1, 0, 1, 2, 0, 5)


def test_sets_of_blocks_are_counted_by_size_and_none_comes_last(skipping):
    wanted = [each for size in range(1, 7) for each in combinations(range(6), size)] + [()]
    found = [skipping.configuration(skipping.decode((0,) * 6 + (index,)))[1] for index in range(64)]
    assert found == wanted
    assert [skipping.encode(skipping.decode((0,) * 6 + (index,)))[-1] for index in range(64)] == list(range(64))


def test_as_many_blocks_as_a_large_model_has_are_no_trouble():
    with torch.device("meta"):
        config = BertConfig(
            vocab_size=9, hidden_size=8, num_hidden_layers=12, num_attention_heads=2, intermediate_size=6
        )
        structure = SizeTable(BertForSequenceClassification(config)).structure
    bare = WidthGroups.of(structure)
    groups = WidthGroups.of(structure, widths=[[8]] * 12 + [[6]] * 12, blocks=bare.names)
    for skipped in ((), (23,), tuple(range(24)), (0, 3, 4, 11, 12, 20, 21, 23)):
        sub_network = groups.sub_network({}, skipped)
        index = groups.encode(sub_network)[-1]
        assert 0 <= index < 2**24 and groups.decode((0,) * 24 + (index,)) == sub_network
    assert groups.encode(groups.sub_network({}, ()))[-1] == 2**24 - 1
    assert groups.encode(groups.sub_network({}, range(24)))[-1] == 2**24 - 2


def test_skipped_blocks_leave_what_the_published_ones_leave(skipping, macs):
    # Counted by NNCF: attention 1, feed-forward 1, everything.
    for skipped, wanted in (((1,), 16159104), ((4,), 19304832), (range(6), 37248)):
        sub_network = skipping.sub_network({}, skipped)
        assert macs(sub_network) == wanted
        assert skipping.configuration(sub_network)[1] == tuple(skipped)
    assert skipping.sub_network({}, (1, 4))["encoder.1.attention"] is None
    assert skipping.sub_network({}, (1, 4))["encoder.1.feed_forward"] == NORM_ONLY


@pytest.mark.parametrize(
    ("kept", "name"),
    [
        ({"encoder.1.attention": None}, "encoder.1.attention"),
        ({"encoder.1.attention": [0, 2]}, "encoder.1.attention"),
        ({"encoder.2.feed_forward": 0}, "encoder.2.feed_forward"),
    ],
)
def test_what_groups_cannot_express_is_refused(groups, kept, name):
    with pytest.raises(ValueError, match=f"cannot express that sub-layer '{name}' keeps"):
        groups.configuration(SubNetwork.of(groups.structure, kept))


def test_a_feed_forward_without_its_norm_is_no_published_block(skipping):
    with pytest.raises(ValueError, match="cannot express that sub-layer 'encoder.0.feed_forward' keeps None"):
        skipping.encode(SubNetwork.of(skipping.structure, {"encoder.0.feed_forward": None}))


def test_groups_that_do_not_fit_are_refused(groups, sizes):
    structure = sizes.structure
    for options, message in (
        ({"names": ["encoder.7.attention"]}, "has no sub-layer 'encoder.7.attention'; it has 'encoder.0.attention'"),
        ({"blocks": ["pooler"]}, "has no sub-layer 'pooler'"),
        ({"widths": [[192]]}, "6 width groups but 1 lists of widths"),
        ({"widths": [[100], *WIDTHS[1:]]}, "group 0 .* has the width 100; choose a multiple of 64 up to 192"),
        ({"widths": [[256], *WIDTHS[1:]]}, "group 0 .* has the width 256"),
        ({"widths": [[], *WIDTHS[1:]]}, "group 0 has no widths"),
    ):
        with pytest.raises(ValueError, match=message):
            WidthGroups.of(structure, **options)
    for call, message in (
        (lambda: groups.decode((0, 0, 0, 0, 0, 4)), "Variable 5 has the index 4; choose 0 to 3"),
        (lambda: groups.decode((0, 0)), "6 variables but 2 indices"),
        (lambda: groups.sub_network({6: 64}), "no width group 6; there are 6"),
        (lambda: groups.sub_network({0: 0}), "group 0 .* has the width 0"),
        (lambda: groups.sub_network({}, [0]), "no block 0 to skip; there are 0"),
        (lambda: WidthGroups.of(structure).decode((0,) * 6), "widths of the groups are not known"),
        (lambda: groups.encode(groups.sub_network({3: 99})), "group 3 has the width 99; its list has .160, 100, 40"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_files_are_written_and_read_again(skipping, macs, tmp_path):
    trials = [
        trial(skipping.decode((0,) * 6 + (63,)), accuracy=0.875),
        trial(skipping.decode((2, 1, 0, 1, 2, 0, 5)), accuracy=0.5),
        trial(skipping.decode((1, 1, 1, 2, 2, 2, 63)), accuracy=0.625),
    ]
    result = SearchResult((*trials, trials[1]), ("error", "size"), (1.0, 1.0))
    write_old_files(tmp_path, result, skipping, metric_name="accuracy", macs=macs)
    lines = (tmp_path / "search_progression.csv").read_bytes().split(b"\r\n")
    assert lines[0] == (
        b"\"OrderedDict([(<ElasticityDim.WIDTH: 'width'>, {0: 192, 1: 192, 2: 192, 3: 160, 4: 160, 5: 160}), "
        b"(<ElasticityDim.DEPTH: 'depth'>, [])])\",MACs,21.270912,top1_acc,-87.5"
    )
    assert b"{0: 64, 1: 64, 2: 192, 3: 100, 4: 14, 5: 160}), (<ElasticityDim.DEPTH: 'depth'>, [5])])" in lines[1]
    assert (tmp_path / "cache_top1_acc.csv").read_bytes().split(b"\r\n")[1:] == [
        b'"(2, 1, 0, 1, 2, 0, 5)",-50.0', b'"(1, 1, 1, 2, 2, 2, 63)",-62.5', b""
    ]  # fmt: skip
    read = read_search_progression(tmp_path / "search_progression.csv", skipping)
    assert [each.sub_network for each in read.trials] == [each.sub_network for each in result.trials]
    assert [each.metrics["accuracy"] for each in read.trials] == [0.875, 0.5, 0.625, 0.5]
    assert read.trials[0].metrics == {"accuracy": 0.875, "top1_acc": 87.5, "MACs": 21.270912}
    cached = read_caches(tmp_path, skipping, metric_name="f1", metric_scale=100)
    assert [each.sub_network for each in cached.trials] == [each.sub_network for each in trials]
    assert [each.metrics["f1"] for each in cached.trials] == [87.5, 50.0, 62.5]
    assert cached.trials[1].costs == (0.5, macs(trials[1].sub_network) / 1e6)
    write_old_files(tmp_path / "percent", cached, skipping, metric_name="f1", metric_scale=100)
    for name in ("cache_MACs.csv", "cache_top1_acc.csv"):
        assert (tmp_path / "percent" / name).read_bytes() == (tmp_path / name).read_bytes()


def test_a_metric_that_is_no_number_is_written_and_read_as_an_error_of_one(skipping, macs, tmp_path):
    trials = [trial(skipping.decode((0,) * 6 + (63,)), correlation=0.5)]
    trials.append(trial(skipping.decode((1,) * 6 + (3,)), correlation=math.nan))
    result = SearchResult(tuple(trials), ("error", "size"), (1.0, 1.0))
    write_old_files(tmp_path, result, skipping, metric_name="correlation", macs=macs)
    for read in (
        read_search_progression(tmp_path / "search_progression.csv", skipping, metric_name="correlation"),
        read_caches(tmp_path, skipping, metric_name="correlation"),
    ):
        assert [each.costs[0] for each in read.trials] == [0.5, 1.0]
        assert math.isnan(read.trials[1].metrics["correlation"])


def test_a_search_without_lists_of_widths_has_no_caches(sizes, macs, tmp_path):
    groups = WidthGroups.of(sizes.structure)
    result = SearchResult((trial(groups.sub_network({5: 7}), f1=88.5),), ("error",), (1.0,))
    write_old_files(tmp_path, result, groups, metric_name="f1", metric_scale=100, macs=macs)
    assert [path.name for path in tmp_path.iterdir()] == ["search_progression.csv"]
    text = (tmp_path / "search_progression.csv").read_text()
    assert "5: 7})])" in text and text.endswith(",top1_acc,-88.5\n")
    for missing, message in (
        ({"metric_name": "accuracy", "macs": macs}, "recorded no metric 'accuracy' but .'f1'"),
        ({"metric_name": "f1"}, "recorded no MACs; give a function"),
    ):
        with pytest.raises(ValueError, match=message):
            write_old_files(tmp_path, result, groups, **missing)


def test_the_front_is_json_by_macs(skipping, macs, tmp_path):
    encodings = {
        (0,) * 6 + (63,): 0.9,
        (2, 1, 1, 2, 2, 3, 63): 0.6,
        (1, 0, 0, 0, 0, 0, 5): 0.8,
        (0, 1, 0, 0, 0, 0, 63): 0.7,
    }
    trials = []
    for encoding, accuracy in encodings.items():
        sub_network = skipping.decode(encoding)
        trials.append(Evaluated(sub_network, (), {"accuracy": accuracy}, (1 - accuracy, macs(sub_network))))
    result = SearchResult(tuple(trials), ("error", "macs"), (1.0, 3e7))
    write_front(tmp_path / "front.json", result, skipping, metric_name="accuracy", macs=macs)
    front = json.loads((tmp_path / "front.json").read_text())["sub_networks"]
    # The last one has more MACs than the third and is worse.
    assert [entry["accuracy"] for entry in front] == [0.6, 0.8, 0.9]
    assert [entry["MACs"] for entry in front] == [macs(trials[index].sub_network) / 1e6 for index in (1, 2, 0)]
    assert front[1]["subnet_config"]["depth"] == [5] and front[1]["subnet_config"]["width"]["0"] == 128
    read = SubNetwork.from_dict(front[1]["sub_network"], skipping.structure)
    assert read == trials[2].sub_network


GOOD = "\"OrderedDict([(<ElasticityDim.WIDTH: 'width'>, {0: 64})])\",MACs,1.0,top1_acc,-2.0"


def test_the_text_of_newer_pythons_and_of_depth_alone_is_read(skipping, tmp_path):
    path = tmp_path / "search_progression.csv"
    newer = "OrderedDict({<ElasticityDim.WIDTH: 'width'>: {0: 64}, <ElasticityDim.DEPTH: 'depth'>: [1, 2]})"
    alone = "OrderedDict([(<ElasticityDim.DEPTH: 'depth'>, [0])])"
    path.write_text(f'{GOOD}\n"{newer}",MACs,1.0,top1_acc,-2.0\n"{alone}",MACs,1.0,top1_acc,-2.0\n')
    found = [each.sub_network for each in read_search_progression(path, skipping).trials]
    assert found == [skipping.sub_network({0: 64}, skipped) for skipped in ((), (1, 2))] + [
        skipping.sub_network({}, [0])
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (GOOD.replace("width'>, {0: 64}", "width'>, {0: open('x')}"), "Row 2 of .* must be an OrderedDict of WIDTH"),
        (GOOD.replace("OrderedDict(", "print("), "must be an OrderedDict"),
        (GOOD.replace("{0: 64}", "{0: 64, 0: 128}"), "must be an OrderedDict"),
        (GOOD.replace("WIDTH: 'width'>, {0: 64}", "KERNEL: 'kernel'>, [3]"), "must be an OrderedDict"),
        (GOOD.replace("{0: 64}", "{0: 65}"), "has the width 65; choose a multiple of 64"),
        (GOOD.replace("1.0", "many"), "Row 2 of .* has the value 'many'; it must be a number"),
        (GOOD.replace("1.0", "nan"), "has the value 'nan'"),
        (GOOD.replace("-2.0", "inf"), "has the value 'inf'"),
        (GOOD.replace("MACs", "latency"), "names 'latency' and 'top1_acc'; it must name 'MACs'"),
        ("1,2,3", "Row 2 of .* has 3 columns; it must have 5"),
    ],
)
def test_rows_that_are_none_of_a_search_are_refused(groups, tmp_path, row, message):
    path = tmp_path / "search_progression.csv"
    path.write_text(f"{GOOD}\n{row}\n")
    with pytest.raises(ValueError, match=message):
        read_search_progression(path, groups)


def test_files_that_are_none_of_a_search_are_refused(groups, tmp_path):
    with pytest.raises(ValueError, match="does not exist; give one that BootstrapNAS wrote"):
        read_search_progression(tmp_path / "nothing.csv", groups)
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(ValueError, match="holds no evaluated sub-network"):
        read_search_progression(tmp_path / "empty.csv", groups)
    for macs, metric, message in (
        (
            '"(0, 0, 0, 0, 0, 0)",1.0',
            '"(0, 0, 0, 0, 0, 1)",-2.0',
            r"Only one of .* has the sub-network \(0, 0, 0, 0, 0, 0",
        ),
        ('"[0, 0]",1.0', '"(0, 0)",1', "begins with .*; it must begin with a tuple of indices"),
        ('"(0, 0)",1.0', '"(0, 0)",1', "6 variables but 2 indices"),
    ):
        (tmp_path / "cache_MACs.csv").write_text(macs)
        (tmp_path / "cache_top1_acc.csv").write_text(metric)
        with pytest.raises(ValueError, match=message):
            read_caches(tmp_path, groups)


@needs_golden
@pytest.mark.parametrize("algorithm", ["NSGA2", "RNSGA2"])
def test_recorded_files_round_trip_byte_for_byte(groups, macs, tmp_path, algorithm):
    originals = {}
    for name in ("search_progression.csv", "cache_MACs.csv", "cache_top1_acc.csv"):
        originals[name] = (GOLDEN / "search" / f"{algorithm}_{name}").read_bytes()
        (tmp_path / name).write_bytes(originals[name])
    kinds = {kind: dict(zip((f"encoder.{i}.{kind}" for i in range(3)), choices)) for kind, choices in CHOICES.items()}
    space = CustomSpace({"sub_layers": {**kinds["attention"], **kinds["feed_forward"]}}, groups.structure)
    result = read_search_progression(tmp_path / "search_progression.csv", groups, space=space)
    cached = read_caches(tmp_path, groups, space=space)
    recorded = json.loads((GOLDEN / "search" / "golden.json").read_text())[algorithm]
    for each, record in zip(result.trials, recorded["records"], strict=True):
        assert groups.configuration(each.sub_network)[0] == {int(k): v for k, v in record["width"].items()}
        assert each.metrics["MACs"] == record["mmacs"] and each.metrics["top1_acc"] == -record["neg_acc"]
        assert space.decode(each.encoding) == each.sub_network
    assert len({each.sub_network for each in result.trials}) == len(cached.trials) == recorded["n_validate_calls"] - 1
    # With the recorded MACs, and with ours, which are the same.
    write_old_files(tmp_path / "again", result, groups, metric_name="accuracy")
    write_old_files(tmp_path / "ours", result, groups, metric_name="accuracy", macs=macs)
    write_old_files(tmp_path / "cached", cached, groups, metric_name="accuracy")
    for name, original in originals.items():
        assert (tmp_path / "again" / name).read_bytes() == original
        assert (tmp_path / "ours" / name).read_bytes() == original
        if "cache" in name:
            assert (tmp_path / "cached" / name).read_bytes() == original

    # And the choice among them is the recorded one.
    params = recorded["params"]
    chosen = choose(
        result,
        params_ratio=macs,
        macs_ratio=macs,
        metric_name="accuracy",
        **published_demands(params["ref_acc"], params["acc_delta"]),
    )
    best = {int(group): width for group, width in recorded["best"]["width"].items()}
    assert groups.configuration(result.trials[chosen].sub_network)[0] == best
    assert result.trials[chosen].metrics["MACs"] == recorded["perf"][0]
    assert math.isclose(result.trials[chosen].metrics["accuracy"], recorded["perf"][1] / 100)


@needs_golden
def test_recorded_sub_networks_have_the_recorded_macs(skipping, macs):
    golden = json.loads((GOLDEN / "reorder_subnets" / "golden.json").read_text())
    assert len(golden["subnets"]) == 10
    for record in golden["subnets"].values():
        sub_network = skipping.sub_network(dict(enumerate(record["width"])), record["depth"])
        assert macs(sub_network) / 1e6 == record["mmacs"]
        assert skipping.configuration(sub_network)[1] == tuple(record["depth"])
    assert skipping.upper_bounds == tuple(golden["design_vars"][1])
    example = golden["pymoo_example"]
    widths = {int(group): width for group, width in example["config"]["width"].items()}
    assert skipping.decode(example["x"]) == skipping.sub_network(widths, example["config"]["depth"])
