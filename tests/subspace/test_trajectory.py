"""The learned projection against a dense singular value decomposition in float64."""

import pytest
import torch

from distsub.errors import ConfigError, DimensionError, TrajectoryError
from distsub.subspace import projection, trajectory
from distsub.subspace.projection import CHUNK
from distsub.subspace.trajectory import MODES, MadeOf, Snapshots, Trajectory, gram

SIZES = (30, 7, 55)
T = 6


def path(t: int = T, sizes=SIZES, dtype=torch.float64, seed: int = 0) -> list[list[torch.Tensor]]:
    """Differences from theta_0 along a random walk, so that the spectrum falls as a training's does."""
    generator = torch.Generator().manual_seed(seed)
    walk = torch.randn(t, sum(sizes), generator=generator, dtype=torch.float64).cumsum(0) * 1e-3
    return [list(row.to(dtype).split(list(sizes))) for row in walk]


def rows_for(mode: str) -> tuple[list[list[torch.Tensor]], torch.Tensor]:
    """R, and the W that it stands for."""
    rows, theta_0 = path(), torch.randn(sum(SIZES), dtype=torch.float64)
    difference = torch.stack([torch.cat(row) for row in rows])
    if mode == "raw":
        return [*rows, list(theta_0.split(list(SIZES)))], difference + theta_0
    return rows, difference - difference.mean(0) if mode == "centered" else difference


@pytest.mark.parametrize("mode", MODES)
def test_it_is_the_dense_singular_value_decomposition(mode):
    rows, w = rows_for(mode)
    d = T - (mode == "centered")
    p = Trajectory(rows, d, mode)
    _, s, vt = torch.linalg.svd(w, full_matrices=False)
    dense = p.dense()
    torch.testing.assert_close(p.singular_values[:d], s[:d], rtol=1e-8, atol=0)
    signs = (dense * vt[:d].T).sum(0).sign()
    torch.testing.assert_close(dense * signs, vt[:d].T, rtol=0, atol=1e-7)
    torch.testing.assert_close(dense.T @ dense, torch.eye(d, dtype=torch.float64), rtol=0, atol=1e-8)
    torch.testing.assert_close(p.explained, s.square().cumsum(0) / s.square().sum(), rtol=1e-8, atol=0)


def test_smaller_d_are_the_first_columns_to_the_bit():
    rows = path()
    assert torch.equal(Trajectory(rows, 3).dense(), Trajectory(rows, 6).dense()[:, :3])


def test_the_update_of_full_fine_tuning_lies_in_the_subspace():
    p, last = Trajectory(path(), T), torch.cat(path()[-1])
    torch.testing.assert_close(p.apply(p.adjoint(last)), last, rtol=0, atol=1e-12)
    one = Trajectory(path()[-1:], 1)
    torch.testing.assert_close(one.apply(one.adjoint(last)), last, rtol=0, atol=1e-12)


def test_bfloat16_checkpoints_are_read_without_more_rounding():
    kept = path(dtype=torch.bfloat16)
    wide = [[tensor.double() for tensor in row] for row in kept]
    torch.testing.assert_close(Trajectory(kept, T).dense(), Trajectory(wide, T).dense(), rtol=0, atol=1e-12)
    z = torch.randn(T)
    torch.testing.assert_close(Trajectory(kept, T).apply(z), Trajectory(wide, T).apply(z.double()).float())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kept", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("wide", [1, 300, 1 << 26])
def test_a_device_multiplies_with_one_matrix(mode, kept, dtype, wide, monkeypatch):
    """As the streamed sums do, to rounding; checkpoints lie there in the precision in which they were recorded."""
    monkeypatch.setattr(trajectory, "WIDE", wide)
    monkeypatch.setattr(trajectory, "CHUNK", 16)
    rows = path(dtype=kept)
    rows += [list(torch.randn(sum(SIZES), dtype=torch.float64).split(list(SIZES)))] if mode == "raw" else []
    p = Trajectory(rows, 3, mode)
    z, g = torch.randn(3, dtype=dtype), torch.randn(sum(SIZES), dtype=dtype)
    streamed = p.apply(z), p.adjoint(g), p.apply(z, 5, 60), p.adjoint(g[5:60], 5)
    monkeypatch.setattr(projection, "launches", lambda device: True)
    placed = p.apply(z), p.adjoint(g), p.apply(z, 5, 60), p.adjoint(g[5:60], 5)
    error = 1e-12 if dtype == torch.float64 else 2e-5
    for found, expected in zip(placed, streamed, strict=True):
        assert found.dtype == dtype
        torch.testing.assert_close(found, expected, rtol=error, atol=error * expected.abs().max().item())
    [matrix] = p._on.values()
    assert matrix.dtype == (torch.float64 if mode == "raw" else kept) and matrix.shape == (len(rows), sum(SIZES))


def test_a_device_without_room_is_streamed_to(monkeypatch):
    p, z = Trajectory(path(), 3), torch.randn(3, dtype=torch.float64)
    expected = p.apply(z)
    monkeypatch.setattr(projection, "launches", lambda device: True)
    monkeypatch.setattr(trajectory, "_room", lambda device: T * sum(SIZES) * 8 - 1)
    assert torch.equal(p.apply(z), expected) and list(p._on.values()) == [None]
    p._on.clear()
    monkeypatch.setattr(trajectory, "_room", lambda device: T * sum(SIZES) * 8)
    torch.testing.assert_close(p.apply(z), expected, rtol=0, atol=1e-14)
    assert p._on[z.device] is not None


def test_the_gram_matrix_over_several_chunks():
    rows = path(3, (CHUNK // 2 + 11, 5))
    w = torch.stack([torch.cat(row) for row in rows])
    torch.testing.assert_close(gram(rows), w @ w.T, rtol=1e-12, atol=0)


@pytest.mark.parametrize("mode", MODES)
def test_the_gram_matrix_is_computed_once_for_the_same_content(mode, monkeypatch):
    """The same bits; other checkpoints, parameters or another base for "raw" compute their own."""
    kept, passes = {}, []

    def remember(about, compute):
        if about not in kept:
            kept[about] = compute()
        return kept[about]

    monkeypatch.setattr(trajectory, "gram", lambda rows: passes.append(1) or gram(rows))
    names, theta_0 = ["a", "b", "c"], [torch.randn(size, dtype=torch.float64) for size in SIZES]

    def made(seed: int = 0, content: str = "x", names=names, theta_0=theta_0) -> Trajectory:
        updates = tuple(dict(zip("abc", row, strict=True)) for row in path(seed=seed))
        return Snapshots(updates, MadeOf(("r",), content), remember).projection(names, theta_0, 3, mode)

    z = torch.randn(3, dtype=torch.float64)
    plain = Snapshots(tuple(dict(zip("abc", row, strict=True)) for row in path()))
    alone = Trajectory(plain.rows(names, theta_0, mode), 3, mode)
    passes.clear()
    assert torch.equal(made().apply(z), alone.apply(z)) and torch.equal(made().apply(z), alone.apply(z))
    assert len(passes) == (2 if mode == "raw" else 1)
    before = len(passes)
    assert not torch.equal(made(1, "y").apply(z), alone.apply(z))
    made(names=names[:2], theta_0=theta_0[:2])
    assert len(passes) == before + 2
    if mode == "raw":
        assert not torch.equal(made(theta_0=[tensor + 1 for tensor in theta_0]).apply(z), alone.apply(z))


def test_d_above_what_there_is():
    with pytest.raises(DimensionError, match="7 coordinates do not fit: the trajectory has 6 checkpoints"):
        Trajectory(path(), 7)
    with pytest.raises(DimensionError, match="6 checkpoints have 5 independent directions \\(centering"):
        Trajectory(path(), 6, "centered")
    rows = path()
    with pytest.raises(DimensionError, match="7 checkpoints have 6 independent"):
        Trajectory([*rows, rows[2]], 7)
    with pytest.raises(ConfigError, match="difference, centered, raw"):
        Trajectory(path(), 2, "centred")


def test_checkpoints_that_are_not_finite_or_do_not_move():
    rows = path()
    rows[3][1][2] = float("nan")
    with pytest.raises(TrajectoryError, match="checkpoint 4 of the trajectory holds numbers that are not finite"):
        Trajectory(rows, 2)
    still = [[torch.zeros(size) for size in SIZES] for _ in range(3)]
    with pytest.raises(DimensionError, match="3 checkpoints have 0 independent directions"):
        Trajectory(still, 1)
    same = [path()[2]] * 4  # one direction, four times
    assert Trajectory(same, 1).explained[0] == pytest.approx(1)
    with pytest.raises(DimensionError, match="4 checkpoints have 1 independent directions"):
        Trajectory(same, 2)
    with pytest.raises(DimensionError, match="1 checkpoints have 0 independent directions \\(centering"):
        Trajectory(path()[:1], 1, "centered")


def test_snapshots_are_laid_out_as_the_model_is():
    update = {"b": torch.ones(2, 3), "a": torch.zeros(4)}
    theta_0 = [torch.zeros(4), torch.full((2, 3), 5.0)]
    assert [len(row) for row in Snapshots((update, update)).rows(("a", "b"), theta_0)] == [2, 2]
    raw = Snapshots((update,)).rows(("b",), theta_0[1:], "raw")
    assert [row[0].tolist() for row in raw] == [[1.0] * 6, [5.0] * 6]
    with pytest.raises(TrajectoryError, match=r"another layout: this model has c \[4\], a checkpoint lacks it"):
        Snapshots((update,)).rows(("c",), theta_0[:1])
    with pytest.raises(TrajectoryError, match=r"b \[3, 2\], a checkpoint has \[2, 3\]"):
        Snapshots((update,)).rows(("b",), [torch.zeros(3, 2)])
