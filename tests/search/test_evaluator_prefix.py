"""The prefix cache: bit-equal to the evaluation without it, within its bound, and without a trace."""

import logging

import numpy as np
import pytest
import torch
from transformers import default_data_collator

from hf_nas.bypass import restore_class, swap_class
from hf_nas.elastic import SuperNetwork
from hf_nas.elastic.prefix import PrefixCache
from hf_nas.gates import Gates, binary_gates
from hf_nas.search import SuperNetworkEvaluator
from hf_nas.structures import describe
from hf_nas.subnetwork import SubNetwork
from tests import zoo
from tests.search.test_evaluator import collate as collate_rows


def make_rows(model, count: int = 13) -> list[dict]:
    """Rows that fit any model of the zoo: of different lengths, or images."""
    rng = np.random.default_rng(0)
    rows = []
    if model.main_input_name == "pixel_values":
        images = zoo.inputs_for(model, count)["pixel_values"]
        return [{"pixel_values": image, "label": int(rng.integers(3))} for image in images]
    for length in rng.integers(4, 20, count):
        row = {"input_ids": [*rng.integers(3, 50, length).tolist(), 2], "label": int(rng.integers(3))}
        if model.config.is_encoder_decoder and "Classification" not in type(model).__name__:
            row["decoder_input_ids"] = rng.integers(3, 50, 6).tolist()
        rows.append(row)
    return rows


def collate(rows: list[dict]) -> dict[str, torch.Tensor]:
    if "pixel_values" in rows[0]:
        return default_data_collator(rows)
    batch = collate_rows([{k: v for k, v in row.items() if k != "decoder_input_ids"} for row in rows])
    if "decoder_input_ids" in rows[0]:
        batch["decoder_input_ids"] = torch.tensor([row["decoder_input_ids"] for row in rows])
    return batch


def neighbours(model, count: int, seed: int = 0) -> list[SubNetwork]:
    """All corner cases, then walks from one of them that change one sub-layer at a time."""
    structure, rng = describe(model), np.random.default_rng(seed)
    visited = list(zoo.corner_cases(model).values())
    current: dict = {}
    for step in range(count):
        if step % 6 == 0:
            current = dict(visited[int(rng.integers(len(visited)))].items())
        sub_layer = structure.sub_layers[int(rng.integers(len(structure.sub_layers)))]
        ids = rng.permutation(sub_layer.units)[: int(rng.integers(1, sub_layer.units))].tolist()
        current[sub_layer.name] = [None, 0, ids, len(ids)][int(rng.integers(4))]
        visited.append(SubNetwork.of(structure, current))
    return visited


class Predictions:
    """As compute_metrics: keeps the last predictions."""

    def __call__(self, prediction):
        self.last = prediction.predictions
        return {"accuracy": 0.0}


def pair(super_network, max_bytes: int = 2**30, **options):
    """Functions from a sub-network to its predictions, with and without the cache, and the evaluator with it."""
    rows, seen = make_rows(super_network.model), Predictions()
    options = {"batch_size": 4, **options}
    cached = SuperNetworkEvaluator(
        super_network, rows, collate, seen, prefix_cache_bytes=max_bytes, **options
    )  # fmt: skip
    plain = SuperNetworkEvaluator(super_network, rows, collate, seen, prefix_cache_bytes=0, **options)

    def predict(evaluator):
        return lambda sub_network: evaluator(sub_network) and seen.last

    return predict(cached), predict(plain), cached


@pytest.mark.parametrize("name", zoo.MODELS)
def test_predictions_are_bit_equal_over_neighbours(name):
    super_network = SuperNetwork(zoo.build(name))
    cached, plain, evaluator = pair(super_network)
    for sub_network in neighbours(super_network.model, 12)[::2]:
        np.testing.assert_array_equal(cached(sub_network), plain(sub_network))
    reused, computed = evaluator.reused_layers
    # The layers of ALBERT are one, which runs several times in a pass.
    assert reused == 0 if name == "albert" else reused > 0.1 * computed


@pytest.mark.parametrize("name", ["bert", "t5", "llama", "gpt2", "bart"])
def test_predictions_are_bit_equal_with_eager_attention_and_under_autocast(name):
    super_network = SuperNetwork(zoo.build(name, "eager"))
    cached, plain, evaluator = pair(super_network, precision="bf16")
    for sub_network in neighbours(super_network.model, 6)[::3]:
        np.testing.assert_array_equal(cached(sub_network), plain(sub_network))
    assert evaluator.reused_layers[0] > 0


def test_exactly_the_layers_that_differ_are_computed():
    super_network = SuperNetwork(zoo.build("bert"))
    cached, _, evaluator = pair(super_network)
    structure, batches, layers = super_network.structure, 4, 3

    def computed(kept: dict) -> int:
        before = evaluator.reused_layers
        cached(SubNetwork.of(structure, kept))
        reused, calculated = (after - old for after, old in zip(evaluator.reused_layers, before))
        assert reused + calculated == layers * batches
        return calculated // batches

    assert computed({}) == 3
    assert computed({"encoder.2.feed_forward": 3}) == 1
    assert computed({"encoder.1.attention": 2, "encoder.2.feed_forward": 3}) == 2
    assert computed({"encoder.1.attention": 2}) == 1
    assert computed({"encoder.0.attention": 2}) == 3
    evaluator.clear()
    assert computed({"encoder.2.feed_forward": 3}) == 3


def test_the_encoder_is_reused_when_only_the_decoder_differs():
    super_network = SuperNetwork(zoo.build("t5"))
    cached, plain, evaluator = pair(super_network)
    structure = super_network.structure
    cached(SubNetwork.full(structure))
    for name, computed in (("decoder.0.attention", 3), ("decoder.2.cross_attention", 1), ("encoder.2.attention", 4)):
        before = evaluator.reused_layers[1]
        sub_network = SubNetwork.of(structure, {name: 1})
        np.testing.assert_array_equal(cached(sub_network), plain(sub_network))
        assert evaluator.reused_layers[1] - before == computed * 4


@pytest.mark.parametrize("name", ["bert", "bart"])
def test_the_bound_is_kept_at_every_moment_and_results_stay_equal(name):
    super_network = SuperNetwork(zoo.build(name))
    bytes_a_layer = 4 * 4 * 32 * 4 * 21  # more than four batches of four rows need
    for bound in (1, bytes_a_layer // 4, 2 * bytes_a_layer, 5 * bytes_a_layer):
        most, caches = [0], []

        def look(outputs, most=most, caches=caches):
            (cache,) = caches
            held = {
                tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
                for node in cache._recent
                for tensor in node.states.values()
            }
            assert sum(held.values()) <= cache.bytes
            most[0] = max(most[0], cache.bytes)
            return outputs.logits

        cached, plain, evaluator = pair(super_network, bound, predictions=look)
        caches.append(evaluator._prefix)
        for sub_network in neighbours(super_network.model, 12)[::2]:
            np.testing.assert_array_equal(cached(sub_network), plain(sub_network))
        assert most[0] <= bound
        assert (most[0] > 0) == (bound > 1)
        evaluator.clear()
        assert evaluator._prefix.bytes == 0


def test_the_longest_unused_leaf_goes_first():
    super_network = SuperNetwork(zoo.build("bert"))
    structure = super_network.structure
    first = SubNetwork.full(structure)
    second = SubNetwork.of(structure, {"encoder.0.attention": 1})
    third = SubNetwork.of(structure, {"encoder.0.attention": 2})
    inputs = zoo.inputs_for(super_network.model)
    size = inputs["input_ids"].numel() * 32 * 4
    cache = PrefixCache(super_network, 4 * size)  # two layers each of two sub-networks

    def computed(sub_network: SubNetwork) -> int:
        before = cache.computed
        with (
            super_network.activated(sub_network) as model,
            torch.inference_mode(),
            cache.evaluating(sub_network) as go,
        ):
            go("a batch")
            model(**inputs)
        assert cache.bytes <= cache.max_bytes
        return cache.computed - before

    assert [computed(each) for each in (first, second)] == [3, 3] and cache.bytes == 4 * size
    assert [computed(each) for each in (first, second, first)] == [1, 1, 1]
    assert computed(third) == 3  # in the place of the second
    assert [computed(first), computed(second)] == [1, 3]  # which takes that of the third
    assert [computed(first), computed(third)] == [1, 3]


def test_the_neighbourhood_of_preferred_sub_networks_outlives_others():
    super_network = SuperNetwork(zoo.build("bert"))
    structure = super_network.structure
    first, *others = (SubNetwork.of(structure, {"encoder.0.feed_forward": count}) for count in range(1, 8))
    neighbour = SubNetwork.of(structure, {"encoder.0.feed_forward": 1, "encoder.2.attention": 1})
    rows = make_rows(super_network.model, 1)
    size = (len(rows[0]["input_ids"])) * 32 * 4
    for preferred, expected in (([], 3), ([first], 1), ([neighbour], 1)):
        evaluator = SuperNetworkEvaluator(
            super_network, rows, collate, lambda _: {}, prefix_cache_bytes=4 * size
        )  # fmt: skip
        for sub_network in (first, *others):
            evaluator.keep_near(preferred)
            evaluator(sub_network)
        before = evaluator.reused_layers[1]
        evaluator(neighbour)
        assert evaluator.reused_layers[1] - before == expected
        assert evaluator._prefix.bytes <= 4 * size


def trace(model) -> list:
    return [
        (sorted(module.__dict__), len(module._forward_hooks), len(module._forward_pre_hooks), type(module))
        for module in model.modules()
    ]


def test_no_trace_is_left_also_after_an_error():
    super_network = SuperNetwork(zoo.build("bert"))
    cached, _, evaluator = pair(super_network)
    full, half = SubNetwork.full(super_network.structure), zoo.corner_cases(super_network.model)["uniform half"]
    cached(half)  # what a super-network itself sets stays
    before = trace(super_network.model)
    cached(full)
    assert trace(super_network.model) == before

    def fail(outputs):
        raise RuntimeError("no memory")

    evaluator.predictions = fail
    with pytest.raises(RuntimeError, match="no memory"):
        evaluator(half)
    assert trace(super_network.model) == before
    super_network.detach()
    assert not any("forward" in module.__dict__ for module in super_network.model.modules())


def test_changed_weights_are_never_served_from_the_cache():
    super_network = SuperNetwork(zoo.build("bert"))
    model = super_network.model
    cached, plain, evaluator = pair(super_network)
    full = SubNetwork.full(super_network.structure)
    small = SubNetwork.of(super_network.structure, {"encoder.2.attention": 1})
    changes = {
        "a training step": lambda: torch.optim.SGD(model.parameters(), lr=0.5).step(),
        "in place": lambda: model.bert.encoder.layer[0].output.dense.weight.mul_(2),
        "embeddings": lambda: model.bert.embeddings.word_embeddings.weight[:, :16].add_(0.3),
        "other storage": lambda: setattr(
            model.bert.encoder.layer[0].output.dense.bias, "data", torch.full((32,), 0.7)
        ),
        "state dict": lambda: model.load_state_dict({k: v * 1.1 for k, v in model.state_dict().items()}),
    }  # fmt: skip
    last = cached(full)
    for change in changes.values():
        model(**zoo.inputs_for(model, labels=True)).loss.backward()
        with torch.no_grad():
            change()
        np.testing.assert_array_equal(cached(small), plain(small))
        now = cached(full)
        np.testing.assert_array_equal(now, plain(full))
        assert np.abs(now - last).max() > 1e-4
        last = now
    model.config._attn_implementation = "eager"
    np.testing.assert_array_equal(cached(small), plain(small))
    before = evaluator.reused_layers[0]
    cached(full)
    assert evaluator.reused_layers[0] > before


def test_models_that_cannot_reuse_say_so_and_stay_right(caplog):
    super_network = SuperNetwork(zoo.build("bert"))
    model = super_network.model
    full = SubNetwork.full(super_network.structure)
    small = SubNetwork.of(super_network.structure, {"encoder.2.attention": 1})
    cached, plain, evaluator = pair(super_network)
    ungated = cached(full)
    gates = binary_gates(super_network.structure, zoo.corner_cases(model)["uniform half"])
    with caplog.at_level(logging.INFO, "hf_nas.elastic.prefix"), Gates(model, gates):
        before = evaluator.reused_layers
        for sub_network in (full, full):
            np.testing.assert_array_equal(cached(sub_network), plain(sub_network))
        assert np.abs(cached(full) - ungated).max() > 1e-4
        assert evaluator.reused_layers == before
    assert len(caplog.records) == 1 and "has hooks" in caplog.text
    np.testing.assert_array_equal(cached(full), ungated)

    layer = model.bert.encoder.layer[0]
    layer.forward = lambda *args, **kwargs: type(layer).forward(layer, *args, **kwargs) + 1
    patched = layer.forward
    with caplog.at_level(logging.INFO, "hf_nas.elastic.prefix"):
        np.testing.assert_array_equal(cached(small), plain(small))
    assert "is patched" in caplog.text and layer.forward is patched
    del layer.forward

    model.config.output_hidden_states = True
    with caplog.at_level(logging.INFO, "hf_nas.elastic.prefix"):
        last = SuperNetworkEvaluator(
            super_network, make_rows(model), collate, lambda p: {"layers": len(p.predictions)}, batch_size=4,
            predictions=lambda outputs: outputs.hidden_states,
        )  # fmt: skip
        assert last(full) == last(small) == {"layers": 4} and last.reused_layers == (0, 0)
    assert "hidden states or attentions" in caplog.text
    # transformers leaves idle hooks behind, which do not hinder.
    model.config.output_hidden_states = False
    assert any(module._forward_hooks for module in model.modules())
    before = evaluator.reused_layers[0]
    for sub_network in (full, small):
        np.testing.assert_array_equal(cached(sub_network), plain(sub_network))
    assert evaluator.reused_layers[0] > before


class HandsOnMore:
    """A T5 layer that hands on a position bias, which a later layer might read."""

    def forward(self, *args, **kwargs):
        hidden_states, *_ = super().forward(*args, **kwargs)
        return hidden_states, hidden_states.new_zeros(1), None


def test_layers_that_hand_on_more_than_hidden_states_are_left_out(caplog):
    super_network = SuperNetwork(zoo.build("t5"))
    cached, plain, evaluator = pair(super_network)
    layer = super_network.model.encoder.block[1]
    swap_class(layer, HandsOnMore)
    with caplog.at_level(logging.INFO, "hf_nas.elastic.prefix"):
        for sub_network in neighbours(super_network.model, 0)[:4]:
            np.testing.assert_array_equal(cached(sub_network), plain(sub_network))
    assert evaluator.reused_layers[0] == 0 and "hand on more than hidden states" in caplog.text
    restore_class(layer)


def test_key_value_caches_are_not_built_and_would_hinder(caplog):
    super_network = SuperNetwork(zoo.build("llama"))
    model, full = super_network.model, SubNetwork.full(super_network.structure)
    caches = []
    cached, _, _ = pair(
        super_network, predictions=lambda outputs: caches.append(outputs.past_key_values) or outputs.logits
    )
    cached(full)
    assert model.config.use_cache and set(caches) == {None}
    cache, inputs = PrefixCache(super_network, 2**30), zoo.inputs_for(model)
    with caplog.at_level(logging.INFO, "hf_nas.elastic.prefix"), torch.inference_mode():
        for _ in range(2):
            with cache.evaluating(full) as begin:
                begin(0)
                assert model(**inputs).past_key_values.get_seq_length(2) == inputs["input_ids"].shape[1]
    assert cache.reused == cache.bytes == 0 and "key-value cache" in caplog.text


def test_compiled_layers_are_left_alone(caplog):
    super_network = SuperNetwork(zoo.build("bert"))
    cache, layers = PrefixCache(super_network, 2**30), super_network.model.bert.encoder.layer
    with cache.evaluating(super_network.full):
        assert all("forward" in layer.__dict__ for layer in layers)
    layers[1].compile(backend="eager")
    with caplog.at_level(logging.INFO, "hf_nas.elastic.prefix"), cache.evaluating(super_network.full):
        assert not any("forward" in layer.__dict__ for layer in layers)
    assert "it is compiled" in caplog.text


def test_wrong_use_is_refused():
    super_network = SuperNetwork(zoo.build("bert"))
    with pytest.raises(ValueError, match="prefix cache of -1 bytes"):
        PrefixCache(super_network, -1)
    cache, full = PrefixCache(super_network, 2**20), SubNetwork.full(super_network.structure)
    with pytest.raises(RuntimeError, match="without the name of its batch"), cache.evaluating(full):
        super_network.model(**zoo.inputs_for(super_network.model))
    assert not any("forward" in module.__dict__ for module in super_network.model.modules())


def test_hidden_states_are_given_up_when_memory_runs_out(caplog):
    super_network = SuperNetwork(zoo.build("bert"))
    cached, plain, evaluator = pair(super_network)
    cases = neighbours(super_network.model, 0)[:3]
    cached(cases[0])
    failures = [torch.OutOfMemoryError("full")]

    def fail_once(outputs):
        if failures:
            raise failures.pop()
        return outputs.logits

    expected = [plain(case) for case in cases]
    evaluator.predictions = fail_once
    with caplog.at_level(logging.WARNING, "hf_nas.search.evaluator"):
        np.testing.assert_array_equal(cached(cases[1]), expected[1])
    assert "given up" in caplog.text
    np.testing.assert_array_equal(cached(cases[2]), expected[2])
    evaluator.clear()
    failures += [torch.OutOfMemoryError("full")] * 2
    with pytest.raises(torch.OutOfMemoryError):
        cached(cases[0])
