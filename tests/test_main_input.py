"""The main input of a model: its name, and the tokens of rows, images and choices."""

import pytest
import torch
from transformers import BertForMultipleChoice

from hf_nas.main_input import MainInput, image_tokens, mean_lengths
from hf_nas.profiling import SizeTable, mac_costs
from hf_nas.subnetwork import SubNetwork
from tests import zoo


class Unread:
    """Rows that must not be looked at."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> dict:
        raise AssertionError("an image was read for its number of tokens")


@pytest.mark.parametrize("name", zoo.MODELS)
def test_the_tokens_are_those_that_the_first_layer_computes_on(name: str) -> None:
    model = zoo.build(name)
    main_input, inputs = MainInput.of(model), zoo.inputs_for(model, batch=2, length=9)
    assert main_input.name in inputs and (main_input.tokens is None) == (name != "vit")
    seen = []
    first = next(module for module in model.base_model.modules() if isinstance(module, torch.nn.ModuleList))[0]
    handle = first.register_forward_hook(
        lambda module, args, kwargs, output: seen.append((args or [kwargs["hidden_states"]])[0].shape[1]),
        with_kwargs=True,
    )
    with torch.no_grad():
        model(**inputs)
    handle.remove()
    assert main_input.tokens_of({key: value[0] for key, value in inputs.items()}) == seen[0]


def test_texts_have_the_length_of_their_ids_and_choices_that_of_the_longest() -> None:
    main_input = MainInput.of(zoo.build("bert"))
    assert main_input.name == "input_ids"
    rows = [{"input_ids": ids} for ids in ([5, 6, 7], torch.tensor([5, 6, 7, 8]), [5] * 9, [])]
    assert [main_input.tokens_of(row) for row in rows] == [3, 4, 9, 0]
    assert main_input.mean_tokens(rows) == 4 and main_input.mean_tokens(rows[3:]) == 1
    choices = MainInput.of(zoo.build("bert", head=BertForMultipleChoice))
    assert choices.tokens_of({"input_ids": [[5, 6], [5, 6, 7, 8, 9], [5]]}) == 5
    assert choices.tokens_of({"input_ids": torch.zeros(2, 7, dtype=torch.long)}) == 7
    main_input.check_length(1)
    main_input.check_length(512)


def test_images_have_the_tokens_of_the_configuration_and_are_not_looked_at() -> None:
    main_input = MainInput.of(zoo.build("vit", image_size=[8, 12], patch_size=[2, 4]))
    assert (main_input.name, main_input.tokens, main_input.mean_tokens(Unread())) == ("pixel_values", 13, 13)
    main_input.check_length(13)
    assert image_tokens(zoo.build("vit")) == 3 * 3 + 1
    with pytest.raises(ValueError, match="BertForSequenceClassification states no image_size or no patch_size"):
        image_tokens(zoo.build("bert"))
    with pytest.raises(ValueError, match="for images of 8 x 12 reads 13 tokens, not 128; give the sequence_length 13"):
        main_input.check_length(128)


def test_texts_to_write_have_a_length_of_their_own() -> None:
    rows = [
        {"input_ids": [5] * 4, "labels": [6] * 2 + [-100] * 3},
        {"input_ids": [5] * 8, "labels": [6] * 9},
    ]
    assert mean_lengths(zoo.build("bart"), rows) == (6, 6)  # (2 + 9) / 2, rounded
    assert mean_lengths(zoo.build("bert"), [{**row, "labels": 1} for row in rows]) == (6, None)
    assert mean_lengths(zoo.build("bart"), [{**row, "labels": 1} for row in rows]) == (6, None)


def test_rows_that_lack_the_input_are_refused() -> None:
    with pytest.raises(ValueError, match=r"columns \['label', 'sentence'\] but no 'input_ids'; tokenise it first"):
        MainInput.of(zoo.build("bert")).tokens_of({"sentence": "a", "label": 1})
    with pytest.raises(ValueError, match="no 'pixel_values'; pass its images through the image processor first"):
        MainInput.of(zoo.build("vit")).tokens_of({"image": None, "label": 1})


def test_other_inputs_are_refused_where_tokens_are_counted_and_only_there() -> None:
    model = zoo.build("bert")
    model.main_input_name = "input_values"
    assert SizeTable(model).macs(SubNetwork.full(SizeTable(model).structure), 9) > 0
    main_input = MainInput.of(model)
    with pytest.raises(ValueError, match="reads 'input_values', whose tokens hf-nas cannot count; give a model that"):
        main_input.tokens_of({"input_values": torch.zeros(16000)})
    with pytest.raises(ValueError, match="no 'input_values'; give it that column"):
        main_input.tokens_of({"input_ids": [1]})


def test_operations_on_images_are_counted_at_their_own_number_of_tokens_alone() -> None:
    model = zoo.build("vit")
    table = SizeTable(model)
    full = SubNetwork.full(table.structure)
    assert table.macs(full, 10) > mac_costs(model, 10).total > 0
    for count in (lambda: table.macs(full, 128), lambda: mac_costs(model, 128)):
        with pytest.raises(ValueError, match="for images of 12 x 12 reads 10 tokens, not 128"):
            count()
