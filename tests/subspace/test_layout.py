"""What the subspace spans, what a scale covers, and the exact count of trained numbers."""

import pytest

from distsub.records import Subspace
from distsub.subspace.layout import HEADS
from distsub.subspace.model import SubspaceModel


class TestCounts:
    @pytest.mark.parametrize("head", HEADS)
    @pytest.mark.parametrize("scales", [None, "layer", "tensor"])
    def test_exactly_d_numbers_are_trained(self, zoo, head, scales):
        model = zoo.held(scales=scales, d=50, head=head)
        assert model.d == model.num_trained == model.num_coordinates + model.scales.numel()
        num_head = 16 * 3 + 3
        total = sum(p.numel() for p in zoo.build("Bert").parameters())
        assert model.num_trained == model.coordinates.numel() + model.scales.numel() == 50
        assert model.num_trained_head == (num_head if head == "trained" else 0)
        assert model.num_params == (total if head == "in_subspace" else total - num_head)
        free = sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert free == sum(p.numel() for p in model.trained().values()) == 50 + model.num_trained_head

    def test_tied_head_is_trained_once_and_wherever_it_is_used(self, zoo):
        model, data = zoo.held("BertForMaskedLM", head="trained"), zoo.batch("BertForMaskedLM")
        model(**data.inputs, labels=data.labels).loss.backward()
        assert model.num_trained_head == 16 * 16 + 16 + 16 + 16 + 60
        assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.head.values())
        decoder = model.model.cls.predictions
        assert decoder.bias is decoder.decoder.bias

    @pytest.mark.parametrize(("layers", "name"), [(2, "Bert"), (3, "Bert"), (5, "Roberta")])
    def test_layer_groups_are_embeddings_blocks_and_output(self, zoo, layers, name):
        model = SubspaceModel(zoo.build(name, num_hidden_layers=layers), 50, Subspace(scales="layer"))
        assert model.scales.numel() == layers + 2
        starts = [start for start, _, _ in model.groups]
        assert starts == sorted(starts)
        assert model.groups[-1][1] == model.num_params

    @pytest.mark.parametrize(
        ("name", "groups"),
        [("Albert", 3), ("DebertaV2", 4), ("XLNet", 4), ("Funnel", 4), ("T5", 6), ("Bart", 6), ("GPT2LMHeadModel", 4)],
    )
    def test_layer_groups_of_other_architectures(self, zoo, name, groups):
        # ALBERT's layers share one block; encoder-decoders have blocks on both sides; GPT-2's head is tied.
        assert zoo.held(name, scales="layer").scales.numel() == groups

    def test_tensor_groups(self, zoo):
        model = zoo.held(scales="tensor", d=100)
        assert model.scales.numel() == len(list(model.model.parameters())) == len(model.entries)

    def test_tied_weights_count_once(self, zoo):
        model = zoo.held("BertForMaskedLM")
        assert model.num_params == sum(p.numel() for p in zoo.build("BertForMaskedLM").parameters())

    def test_units_read_every_place_once(self, zoo, architecture):
        model = zoo.held(architecture)
        places = [(id(owner), key) for unit in model.units for owner, key, _ in unit.uses]
        expected = {(id(m), key) for m in model.model.modules() for key, p in m._parameters.items() if p is not None}
        assert len(places) == len(set(places))
        assert set(places) == expected
