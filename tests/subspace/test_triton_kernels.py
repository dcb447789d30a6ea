"""The kernels for CUDA against the projections on a CPU in float64; interpreted where there is no GPU, as in CI."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are made
pytest.importorskip("triton", reason="triton is not installed: pip install triton")

from distsub.records import Random, Subspace
from distsub.subspace import bits, kernels, projection, triton_kernels
from distsub.subspace.families import Partition
from distsub.subspace.fastfood import Fastfood

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZES = (300, 700, 64, 1, 41)
D = sum(SIZES)
SLICES = [(0, D), (5, 6), (250, 770), (256, 512), (D - 3, D), (9, 9)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ROUNDING = {torch.float32: 2**-23, torch.bfloat16: 2**-8, torch.float16: 2**-11}
"""One unit in the last place, relative: rounding once is half of it."""


@pytest.fixture(autouse=True)
def same():
    torch.manual_seed(0)


def stretches(dtype, start, stop):
    """Tensors at the places of SIZES that a slice touches, and what they hold there in float64."""
    whole, scale, found, at = torch.zeros(D, dtype=torch.float64), torch.ones(D, dtype=torch.float64), [], 0
    scales = torch.tensor([0.5, 1.5, -2.0])
    for number, size in enumerate(SIZES):
        tensor = torch.randn(size).to(dtype)
        if at < stop and at + size > start:
            found.append((at, tensor.to(DEVICE), number % 3))
            whole[at : at + size], scale[at : at + size] = tensor.double(), scales[number % 3].double()
        at += size
    return found, whole, scales, scale


def close(found, expected, dtype, terms):
    """Equal within one rounding to the dtype and float32's error of a sum of some terms."""
    assert found.dtype == dtype and found.shape == expected.shape
    largest = expected.abs().max() if expected.numel() else 0.0
    error = ROUNDING[dtype] * expected.abs() + 2**-23 * terms * largest
    assert ((found.cpu().double() - expected).abs() <= error).all()


@pytest.mark.parametrize("length", [256, 512, 1024])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("start", "stop"), SLICES)
def test_fastfood_with_theta_0_and_scales(length, dtype, start, stop):
    p = Fastfood(SIZES, 100, 7, block_length=length)
    z = torch.randn(100)
    expected = p.apply(z.double())
    found, theta_0, scales, scale = stretches(dtype, start, stop)
    table, key = bits.short_normal_table(torch.device(DEVICE)), bits.key(7, "fastfood/G")
    code = p.encode(z).code.to(DEVICE)
    plain = triton_kernels.fastfood(code, table, key, start, stop)
    close(plain, expected[start:stop], torch.float32, 8)
    made = triton_kernels.fastfood(code, table, key, start, stop, add=found, scales=scales.to(DEVICE), dtype=dtype)
    close(made, (theta_0 + scale * expected)[start:stop], dtype, 16)


@pytest.mark.parametrize("length", [256, 512, 1024])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("start", "stop"), SLICES)
@pytest.mark.parametrize("programs", [1, 3, 512])
def test_fastfood_transposed(length, dtype, start, stop, programs, monkeypatch):
    monkeypatch.setattr(triton_kernels, "PROGRAMS", programs)
    p = Fastfood(SIZES, 100, 7, block_length=length)
    grads = [(at, tensor, group) for at, tensor, group in stretches(dtype, start, stop)[0] if at >= start]
    grads = [(at, tensor[: stop - at], group) for at, tensor, group in grads]
    flat = torch.zeros(stop - start, dtype=torch.float64)
    for at, tensor, _ in grads:
        flat[at - start : at - start + len(tensor)] = tensor.double().cpu()
    table, key = bits.short_normal_table(torch.device(DEVICE)), bits.key(7, "fastfood/G")
    code = triton_kernels.fastfood_transpose(length, table, key, start, stop, grads)
    close(p._decode(code.cpu().double()).float(), p.adjoint(flat, start), torch.float32, 16)


@pytest.mark.parametrize("length", [1 << power for power in range(8, 15)])
def test_every_block_length(length):
    sizes = (length + 500, 9)
    p, z, g = Fastfood(sizes, 200, 3, block_length=length), torch.randn(200), torch.randn(sum(sizes))
    table, key = bits.short_normal_table(torch.device(DEVICE)), bits.key(3, "fastfood/G")
    found = triton_kernels.fastfood(p.encode(z).code.to(DEVICE), table, key, 0, sum(sizes))
    close(found, p.apply(z.double()), torch.float32, 32)
    code = triton_kernels.fastfood_transpose(length, table, key, 0, sum(sizes), [(0, g.to(DEVICE), 0)])
    close(p._decode(code.cpu().double()).float(), p.adjoint(g.double()), torch.float32, 64)
    assert triton_kernels.supports(length) and not triton_kernels.supports(2 * triton_kernels.LONGEST)


@pytest.mark.parametrize("d", [1, 16, 37])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("start", "stop"), SLICES)
def test_partition_with_theta_0_and_scales(d, dtype, start, stop):
    p, z = Partition(SIZES, d, 7), torch.randn(d)
    found, theta_0, scales, scale = stretches(dtype, start, stop)
    code, key = p.encode(z).code.to(DEVICE), bits.key(7, "partition")
    assert torch.equal(triton_kernels.partition(code, key, start, stop).cpu(), p.apply(z, start, stop))
    made = triton_kernels.partition(code, key, start, stop, add=found, scales=scales.to(DEVICE), dtype=dtype)
    close(made, (theta_0 + scale * p.apply(z.double()))[start:stop], dtype, 4)


def laid(dtype, start, stop):
    """A gradient in several places of a slice, their tensors' numbers, and the same in one piece in float64."""
    flat, found, at = torch.zeros(stop - start, dtype=torch.float64), [], 0
    for number, size in enumerate(SIZES):
        low, high = max(at, start), min(at + size, stop)
        at += size
        if low < high:
            tensor = torch.randn(high - low).to(dtype)
            found.append((low, tensor.to(DEVICE), number))
            flat[low - start : high - start] = tensor.double()
    return found, flat


@pytest.mark.parametrize("d", [1, 16, 37])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("start", "stop"), SLICES[:-1])
def test_partition_transposed(d, dtype, start, stop):
    p, key = Partition(SIZES, d, 7), bits.key(7, "partition")
    grads, flat = laid(dtype, start, stop)
    code = triton_kernels.partition_transpose(2 * d, key, start, stop, grads)
    close(p._decode(code.cpu().double()).float(), p.adjoint(flat, start), torch.float32, 4)
    backwards = triton_kernels.partition_transpose(2 * d, key, start, stop, grads[::-1])
    assert torch.equal(code, backwards), "sums of integers have no order"


@pytest.mark.parametrize("size", [2.0**-120, 1e-30, 1e30, 0.0, float("inf"), float("nan")])
def test_partition_transposed_of_any_size(size):
    """Also where nearly all that is large falls into one coordinate, and where a sum is not finite."""
    p, g = Partition(SIZES, 16, 7), torch.randn(D) * 1e-3
    g[5] = 1.0
    g *= size
    code = triton_kernels.partition_transpose(32, bits.key(7, "partition"), 0, D, [(0, g.to(DEVICE), 0)])
    found, expected = p._decode(code.cpu().double()), p.adjoint(g.double())
    assert found.isnan().all() if not expected.isfinite().all() else (found - expected).abs().max() <= 1e-6 * size


@pytest.mark.parametrize("make", [lambda: Fastfood(SIZES, 100, 7, block_length=256), lambda: Partition(SIZES, 30, 7)])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("start", "stop"), SLICES[:-1])
@pytest.mark.parametrize("scaled", [False, True])
def test_every_tensor_has_its_factor(make, dtype, start, stop, scaled, chosen):
    """With a scale of the group too, where there is one."""
    p, z = make(), torch.randn(make().num_coordinates)
    p.match([1.0, 2.0, 3.0, 4.0, 5.0])
    places, flat = laid(dtype, start, stop)
    scales = torch.tensor([7.0, -1.5]).to(DEVICE) if scaled else None
    add = [(at, tensor, 1) for at, tensor, _ in places]
    made = p.make(z.to(DEVICE), start, stop, add, scales, dtype)
    assert made is not None
    close(made, flat + (-1.5 if scaled else 1) * p.apply(z.double(), start, stop), dtype, 32)
    with torch.no_grad():
        reduced = p.collapse(start, stop, add)
    assert reduced is not None
    close(reduced, p.adjoint(flat, start), torch.float32, 64)
    if len(add) > 1:
        assert p.make(z.to(DEVICE), start, stop, [(*each[:2], i) for i, each in enumerate(add)], made, dtype) is None


@pytest.mark.parametrize("make", [lambda: Fastfood(SIZES, 100, 7, block_length=256), lambda: Partition(SIZES, 30, 7)])
@pytest.mark.parametrize("rows", [[0], [3, 3, 0, 9, 3], list(range(10)), [9] * 40])
@pytest.mark.parametrize("blindly", [False, True])
def test_rows_of_a_table(make, rows, blindly, chosen, monkeypatch):
    p, z = make(), torch.randn(make().num_coordinates)
    p.match([1.0, 2.0, 3.0, 4.0, 5.0])
    rows, g, width, start = torch.tensor(rows), torch.randn(len(rows), 70), 70, SIZES[0]
    monkeypatch.setattr(projection, "launches", lambda device: blindly)
    expected = p.apply_rows(z.double(), start, width, rows), p.adjoint_rows(g.double(), start, rows)
    assert not p._proven and p.apply(z.to(DEVICE)) is not None and all(p._proven.values())
    monkeypatch.setattr(p, "_state", lambda blocks: pytest.fail("torch's operations"))
    found = (
        p.apply_rows(z.to(DEVICE), start, width, rows.to(DEVICE)),
        p.adjoint_rows(g.to(DEVICE), start, rows.to(DEVICE)),
    )
    for ours, theirs in zip(found, expected, strict=True):
        close(ours, theirs, torch.float32, 64)


@pytest.fixture
def chosen(monkeypatch):
    """Have kernels run where tensors are, which otherwise is for CUDA alone."""
    monkeypatch.setattr(kernels, "wanted", lambda device: True)


@pytest.mark.parametrize("make", [lambda: Fastfood(SIZES, 100, 7, block_length=256), lambda: Partition(SIZES, 30, 7)])
@pytest.mark.parametrize("normalization", ["global", "per_tensor"])
def test_a_projection_gives_the_same_by_kernels(make, normalization, chosen, monkeypatch):
    p = make()
    if normalization == "per_tensor":
        p.match([1.0, 2.0, 3.0, 4.0, 5.0])
    z, g = torch.randn(p.num_coordinates), torch.randn(D)

    def all_of(z, g):
        return p.apply(z), p.adjoint(g), p.apply(z, 250, 770), p.adjoint(g[9:500], 9)

    expected = all_of(z.double(), g.double())
    assert not p._proven, "float64 is for torch's operations"
    p.forget()
    found = all_of(z.to(DEVICE), g.to(DEVICE))
    assert list(p._proven.values()) == [True] and not p._cache
    for ours, theirs in zip(found, expected, strict=True):
        close(ours, theirs, torch.float32, 32)
    z.requires_grad_()
    (gradient,) = torch.autograd.grad(p.apply(z), z, g)
    close(gradient, expected[1], torch.float32, 32)


def test_kernels_that_are_wrong_or_fail_are_left_alone(chosen, monkeypatch):
    real = triton_kernels.fastfood
    expected = Fastfood(SIZES, 100, 7, block_length=256).apply(torch.ones(100, dtype=torch.float64))
    for broken, why in (
        (lambda *args, **more: real(*args, **more) * 1.001, "off by 1.0e-03 of fastfood's update"),
        (lambda *args, **more: [][0], "list index out of range"),
    ):
        monkeypatch.setattr(triton_kernels, "fastfood", broken)
        p = Fastfood(SIZES, 100, 7, block_length=256)
        with pytest.warns(UserWarning, match=f"Triton's kernels are not used, torch's operations are, .*{why}"):
            found = p.apply(torch.ones(100, device=DEVICE))
        close(found, expected, torch.float32, 32)


def test_one_switch(monkeypatch):
    assert kernels.wanted(torch.device("cuda")) and not kernels.wanted(torch.device("cpu"))
    monkeypatch.setenv(kernels.SWITCH, "0")
    assert not kernels.wanted(torch.device("cuda"))


SPECS = {
    "did": Subspace(Random("fastfood", block_length=256)),
    "said": Subspace(Random("fastfood", block_length=256), scales="layer"),
    "said by tensor": Subspace(Random("fastfood", block_length=256), scales="tensor"),
    "partition": Subspace(scales="layer"),
    "factors": Subspace(Random("partition", "per_tensor"), scales="layer"),
    "layers": Subspace(Random("fastfood", block_length=256), scope="layer", head="trained", embeddings="frozen"),
}


@pytest.mark.slow
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_a_model_has_the_same_loss_and_gradient_by_kernels(zoo, spec, dtype, autocast, monkeypatch):
    """In bfloat16 weights are rounded once either way, from sums that differ in float32's last digit."""
    results, made = {}, []
    for name in ("fastfood", "fastfood_transpose", "partition", "partition_transpose"):
        function = getattr(triton_kernels, name)
        monkeypatch.setattr(triton_kernels, name, lambda *a, f=function, **k: made.append(k.get("dtype")) or f(*a, **k))
    for by_kernels in (False, True):
        monkeypatch.setattr(kernels, "wanted", lambda device, by_kernels=by_kernels: by_kernels)
        model = zoo.held("Bert", 60, dtype, **vars(SPECS[spec])).to(DEVICE).train()
        zoo.move(model, 0.1)
        batch = zoo.batch("Bert")
        torch.manual_seed(0)
        with torch.autocast(DEVICE, torch.bfloat16, enabled=autocast):
            loss = model(**{k: v.to(DEVICE) for k, v in batch.inputs.items()}, labels=batch.labels.to(DEVICE)).loss
        loss.backward()
        results[by_kernels] = loss.item(), model.coordinates.grad.clone()
        assert bool(made) == by_kernels
    error = 1e-5 if dtype == torch.float32 and not autocast else 0.02
    assert results[True][0] == pytest.approx(results[False][0], rel=error)
    assert (results[True][1] - results[False][1]).norm() <= error * results[False][1].norm()
    assert (None if spec == "layers" else dtype) in made
