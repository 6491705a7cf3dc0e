"""The numbers in the published files are those of the configuration: positions of its groups and blocks."""

import csv
import itertools
import logging

import pytest

from hf_nas import describe
from hf_nas.nncf_config import NncfConfig, nncf_space, with_space
from hf_nas.profiling import SizeTable
from hf_nas.report import RelativeSizes
from hf_nas.search import Evaluated, SearchResult, read_caches, read_search_progression
from hf_nas.space import CustomSpace, get_search_space
from tests import zoo
from tests.nncf_config.configs import attention_block, config, feed_forward_block, neurons, projections
from trainer_plugins.search.published_files import published_groups, write_published_files
from trainer_plugins.search.task_evaluation import SearchTask


WIDTH = "nas__training__elasticity__width__"
DEPTH = "nas__training__elasticity__depth__"
UNUSUAL = {
    f"{WIDTH}overwrite_groups": [neurons(2), projections(1), neurons(0)],
    f"{WIDTH}overwrite_groups_widths": [[24, 17, 9], [32, 16], [24, 5]],
    f"{DEPTH}skipped_blocks": [feed_forward_block(2), attention_block(0), feed_forward_block(1), attention_block(2)],
}


@pytest.fixture(scope="module")
def model():
    return zoo.build("bert")


def write(folder, nncf: NncfConfig, space: CustomSpace, model) -> SearchResult:
    """All sub-networks of the space, as a search that met each once."""
    encodings = list(itertools.product(*(range(len(d.choices)) for d in space.dimensions)))
    trials = tuple(
        Evaluated(space.decode(each), each, {"accuracy": index / len(encodings)}, (1.0, 1.0))
        for index, each in enumerate(encodings)
    )
    result = SearchResult(trials, ("error", "macs"), (1.0, 1.0))
    sizes = RelativeSizes(SizeTable(model), 16)
    task = SearchTask({None: []}, "accuracy", True, 1.0, None)
    write_published_files(folder, result, nncf, space, model, sizes, task)
    return result


def test_the_order_of_the_configuration_counts(model, tmp_path) -> None:
    nncf = NncfConfig.from_dict(config(**UNUSUAL))
    space = nncf_space(nncf, model)
    groups = published_groups(nncf, space, model)
    assert groups.names == ("encoder.2.feed_forward", "encoder.1.attention", "encoder.0.feed_forward")
    assert groups.widths == ((24, 17, 9), (32, 16), (24, 5))
    assert groups.blocks == (
        "encoder.2.feed_forward", "encoder.0.attention", "encoder.1.feed_forward", "encoder.2.attention",
    )  # fmt: skip
    result = write(tmp_path, nncf, space, model)
    for read in (read_search_progression(tmp_path / "search_progression.csv", groups), read_caches(tmp_path, groups)):
        assert [each.sub_network for each in read.trials] == [each.sub_network for each in result.trials]
    only_the_second_block_goes = groups.sub_network({0: 24, 1: 32, 2: 24}, [1])
    row = [each.sub_network for each in result.trials].index(only_the_second_block_goes)
    with open(tmp_path / "search_progression.csv", newline="") as file:
        assert list(csv.reader(file))[row][0].endswith("(<ElasticityDim.DEPTH: 'depth'>, [1])])")


def test_a_generated_space_has_the_numbers_of_the_configuration_that_it_makes(model) -> None:
    given = NncfConfig.from_dict(config())
    lists = {"encoder.0.attention": [0, 2, 4], "encoder.1.feed_forward": [0, 24], "encoder.2.feed_forward": [3, 24]}
    space = CustomSpace({"sub_layers": lists, "skip_keeps_norm": ["encoder.1.feed_forward"]}, describe(model))
    nncf = with_space(given, space, model)
    groups = published_groups(nncf, nncf_space(nncf, model), model)
    assert groups.blocks == ("encoder.1.feed_forward", "encoder.0.attention")
    assert [list(names) for names in nncf.training.depth.skipped_blocks] == [feed_forward_block(1), attention_block(0)]
    # A list of one width is no choice, but a group all the same.
    assert groups.names[:3] == tuple(f"encoder.{index}.attention" for index in range(3))


def test_blocks_that_always_go_have_no_number(model, tmp_path) -> None:
    blocks = {"fixed_skipped_blocks": [attention_block(1)], "skipped_blocks": [attention_block(2)]}
    nncf = NncfConfig.from_dict(config(**{f"{DEPTH}{key}": value for key, value in blocks.items()}))
    space = nncf_space(nncf, model)
    result = write(tmp_path, nncf, space, model)
    groups = published_groups(nncf, space, model)
    assert groups.blocks == ("encoder.2.attention",) and groups.always_skipped == ("encoder.1.attention",)
    read = read_search_progression(tmp_path / "search_progression.csv", groups)
    assert [each.sub_network for each in read.trials] == [each.sub_network for each in result.trials]
    assert all(each.sub_network["encoder.1.attention"] is None for each in read.trials)


def test_what_has_no_numbers_is_said(model, tmp_path, caplog) -> None:
    caplog.set_level(logging.WARNING)
    chain = [feed_forward_block(0), attention_block(1), attention_block(0)]
    chain[0][1] = attention_block(1)[0]  # with its normalisation it ends where the next one begins
    nncf = NncfConfig.from_dict(config(**{f"{DEPTH}skipped_blocks": chain}))
    write(tmp_path / "chain", nncf, nncf_space(nncf, model, nncf.training.schedule.stages[0]), model)
    assert "lists the block of 'encoder.0.feed_forward', which the space does not skip" in caplog.text
    without = NncfConfig.from_dict(config(nas__training=None))
    write(tmp_path / "small", without, get_search_space("small", describe(model)), model)
    assert "not written in the published format as well" in caplog.records[-1].getMessage()
    assert not list(tmp_path.rglob("*.csv"))
