"""Generation with every kind of cache equals generation without one, however uneven the layers are."""

import pytest
import torch

from hf_nas import SubNetwork, describe, extract, save_extracted
from tests import zoo


GENERATING = [name for name, entry in zoo.MODELS.items() if "Classification" not in entry[0].__name__]
DECODERS = [name for name in GENERATING if not zoo.build(name).config.is_encoder_decoder]
# Where implementations break: caches take their length from the first layer, and their shapes layer by layer.
CASES = (
    "no head left in one layer",
    "attention of the first layer gone",
    "attention of a middle layer gone",
    "all attention gone",
    "first layer gone",
    "other units in every layer",
    "everything at once",
)
SETTINGS = {
    "do_sample": False,
    "max_new_tokens": 6,
    "min_new_tokens": 6,
    "return_dict_in_generate": True,
    "output_logits": True,
}


def prompts(model) -> dict:
    inputs = {k: v for k, v in zoo.inputs_for(model, batch=2).items() if k != "decoder_input_ids"}
    # Decoders are padded on the left.
    return inputs if model.config.is_encoder_decoder else {key: value.flip(1) for key, value in inputs.items()}


def assert_same(found, wanted) -> None:
    assert torch.equal(found.sequences, wanted.sequences)
    for with_cache, without in zip(found.logits, wanted.logits, strict=True):
        assert (with_cache - without).abs().max() <= 1e-5 * max(1.0, float(without.abs().max()))


@pytest.mark.parametrize("name", GENERATING)
def test_dynamic_and_static_caches(name: str) -> None:
    model = zoo.build(name)
    inputs = prompts(model)
    for case in CASES:
        small = extract(model, zoo.corner_cases(model)[case])
        wanted = small.generate(**inputs, **SETTINGS, use_cache=False)
        assert_same(small.generate(**inputs, **SETTINGS), wanted)
        assert_same(small.generate(**inputs, **SETTINGS, cache_implementation="static"), wanted)


@pytest.mark.parametrize("name", ["llama", "bart"])
def test_static_caches_follow_the_beams(name: str) -> None:
    model = zoo.build(name)
    small = extract(model, zoo.corner_cases(model)["everything at once"])
    settings = {"do_sample": False, "max_new_tokens": 6, "min_new_tokens": 6, "num_beams": 3}
    wanted = small.generate(**prompts(model), **settings, use_cache=False)
    found = small.generate(**prompts(model), **settings, cache_implementation="static")
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("name", DECODERS)
def test_a_static_cache_and_a_prompt_in_chunks(name: str) -> None:
    """transformers would give the cache a shape before it meets a layer, from fields that layers do not share."""
    model = zoo.build(name)
    inputs = {key: value[:1] for key, value in prompts(model).items()}
    chunks = {"cache_implementation": "static", "prefill_chunk_size": 4}
    for case in ("full", *CASES):
        small = extract(model, zoo.corner_cases(model)[case])
        wanted = small.generate(**inputs, **SETTINGS, use_cache=False)
        assert_same(small.generate(**inputs, **SETTINGS, **chunks), wanted)


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5"])
def test_a_cache_that_is_cropped_after_wrong_guesses(name: str) -> None:
    model = zoo.build(name)
    inputs = {key: value[:1] for key, value in prompts(model).items()}
    settings = {"do_sample": False, "max_new_tokens": 8, "min_new_tokens": 8}
    small = extract(model, zoo.corner_cases(model)["attention of the first layer gone"])
    wanted = small.generate(**inputs, **settings, use_cache=False)
    assert torch.equal(small.generate(**inputs, **settings, prompt_lookup_num_tokens=3), wanted)


def test_key_value_heads_that_differ_by_layer_are_kept_as_many_as_there_are(tmp_path) -> None:
    model = zoo.build("llama")
    heads = [3, 1, 2]
    sub_network = SubNetwork.of(describe(model), {f"decoder.{i}.attention": count for i, count in enumerate(heads)})
    save_extracted(extract(model, sub_network), sub_network, tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    inputs = prompts(model)
    wanted = loaded.generate(**inputs, **SETTINGS, use_cache=False)
    for cache in ("dynamic", "static"):
        found = loaded.generate(**inputs, **SETTINGS, cache_implementation=cache)
        assert_same(found, wanted)
        assert [layer.keys.shape[1] for layer in found.past_key_values.layers] == heads
