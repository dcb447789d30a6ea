import pytest
import torch

from distsub.finetune import precision


@pytest.fixture
def flags(monkeypatch):
    """Pretend to be another processor."""

    def pretend(amx=False, avx512_bf16=False, avx2=False, probe=1.0):
        precision.gains_by_bf16.cache_clear()
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
        monkeypatch.setattr(torch.cpu, "_is_avx2_supported", lambda: avx2)
        monkeypatch.setattr(precision, "speed_up", lambda: probe)

    yield pretend
    precision.gains_by_bf16.cache_clear()


@pytest.mark.parametrize(
    ("processor", "expected"),
    [
        ({"amx": True, "avx2": True}, "bf16"),
        ({"avx512_bf16": True, "avx2": True}, "bf16"),
        ({"avx2": True, "probe": 3.0}, "fp32"),  # x86 without either: nothing to probe
        ({"probe": 2.8}, "bf16"),  # no flag tells: the probe does
        ({"probe": 1.1}, "fp32"),
    ],
)
def test_auto_takes_bf16_where_the_processor_gains(flags, processor, expected):
    flags(**processor)
    assert precision.autocast_for("auto", "cpu")[0] == expected
    for asked in ("fp32", "bf16"):
        assert precision.autocast_for(asked, "cpu")[0] == asked


def test_an_emulation_is_no_gain(monkeypatch):
    precision.gains_by_bf16.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert precision.autocast_for("auto", "cuda")[0] == "fp32"
    precision.gains_by_bf16.cache_clear()


def test_the_probe_measures_a_ratio_and_leaves_the_random_state():
    before = torch.get_rng_state()
    assert 0.01 < precision.speed_up(seconds=0.05) < 100
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(("asked", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_the_context_runs_a_product_in_the_precision(asked, dtype):
    with precision.autocast_for(asked, "cpu")[1]():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
