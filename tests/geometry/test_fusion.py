"""Fusion beside loops that say the same slowly, and what must hold whatever the Gaussians."""

import math
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from pmsplat.geometry import camera, fusion
from pmsplat.geometry.fusion import Cloud, Maps, Votes, Voxels
from pmsplat.geometry.gaussian import covariance
from tests.scenes import PARAMETERS, random_cameras, random_gaussians


def cloud(generator: torch.Generator, count: int = 40, dtype: torch.dtype = torch.float64) -> Cloud:
    found = random_gaussians(count, generator, degree=1, dtype=dtype)
    sure = torch.rand(count, generator=generator, dtype=dtype)
    return Cloud(*(getattr(found, name)[0] for name in PARAMETERS), confidence=sure)


def maps(generator: torch.Generator, views: int, size: tuple[int, int] = (9, 12)) -> Maps:
    """Depth around that of `random_gaussians`, with some holes."""
    cameras = random_cameras(views, generator)
    depth = 4 + 0.3 * torch.randn(views, *size, generator=generator)
    depth[torch.rand(views, *size, generator=generator) < 0.1] = 0
    sure = torch.rand(views, *size, generator=generator)
    return Maps(depth, sure, cameras.c2w[0], cameras.K[0])


def ask_slowly(mean: Tensor, group: Maps) -> tuple[bool, bool, float]:
    """Whether a group agrees, whether it sees through, and how sure it is, view by view."""
    agrees, through, best = False, False, 0.0
    height, width = group.depth.shape[1:]
    for depth, sure, c2w, K in zip(*vars(group).values(), strict=True):
        x, y, z = camera.project_world(mean[None], c2w, K)[0].tolist()
        column, row = math.floor(x * width), math.floor(y * height)
        if z <= 0 or not (0 <= column < width and 0 <= row < height):
            continue
        there = depth[row, column].item()
        if there == 0:
            continue
        if abs(z - there) <= 0.03 * there:
            fading = 1 - abs(z - there) / (0.03 * there)
            agrees, best = True, max(best, fading * sure[row, column].item())
        elif z < 0.97 * there:
            through = True
    return agrees, through and not agrees, best


def test_votes_are_those_of_a_loop(
    generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    means = cloud(generator, 300, torch.float32).means
    means[:40] -= torch.tensor([0.0, 0.0, 8.0])  # behind the cameras
    groups = [maps(generator, views) for views in (1, 3, 2)]
    monkeypatch.setattr(fusion, "AT_ONCE", 100)
    votes = fusion.count_votes(means, groups)
    slow = [[ask_slowly(mean, group) for group in groups] for mean in means]
    assert votes.agree.tolist() == [sum(agrees for agrees, _, _ in row) for row in slow]
    assert votes.through.tolist() == [sum(through for _, through, _ in row) for row in slow]
    sure = torch.tensor([sum(best for _, _, best in row) for row in slow])
    torch.testing.assert_close(votes.confidence, sure, atol=1e-4, rtol=1e-4)  # z - depth cancels
    assert {0, 1, 2} <= {*votes.agree.tolist()} and votes.through.max() >= 2
    assert not votes.agree[:40].any() and not votes.through[:40].any()
    floats = [
        sum(through for _, through, _ in row) >= 2 * (1 + sum(agrees for agrees, _, _ in row))
        for row in slow
    ]
    assert votes.floaters.tolist() == floats and 0 < sum(floats) < len(floats)


def test_shares_of_one_surface_sum_to_one(generator: torch.Generator) -> None:
    """Layers of as many groups hide together what each hid alone, however sure each is."""
    opacities = torch.tensor([0.0, 1e-4, 0.3, 0.99, 1.0], dtype=torch.float64)
    for groups in (2, 3, 7):
        sure = torch.rand(groups, len(opacities), generator=generator, dtype=torch.float64)
        sure[:, 1] = 0.0  # nobody is sure of the second
        seen = torch.ones(groups, len(opacities), dtype=torch.float64)
        for own in range(groups):
            others = sure.sum(dim=0) - sure[own]
            agree = torch.full((len(opacities),), groups - 1)
            votes = Votes(agree, torch.zeros_like(agree), others)
            seen[own] -= fusion.share_opacities(opacities, sure[own], votes)
        expected = 1 - opacities.clamp(max=fusion.SOLID)
        torch.testing.assert_close(seen.prod(dim=0), expected, rtol=1e-9, atol=1e-12)


def test_alone_nothing_is_shared(generator: torch.Generator) -> None:
    opacities = torch.tensor([0.0, 0.123, 0.9995, 1.0])
    none = torch.zeros(4, dtype=torch.int32)
    for sure in (torch.zeros(4), torch.rand(4, generator=generator)):
        shared = fusion.share_opacities(opacities, sure, Votes(none, none, torch.zeros(4)))
        assert torch.equal(shared, opacities)


def voxels_slowly(means: Tensor, edges: Tensor, factor: float) -> list[list[int]]:
    """The Gaussians of each voxel, by the first in each."""
    found = defaultdict(list)
    for i, (mean, edge) in enumerate(zip(means.tolist(), edges.tolist(), strict=True)):
        level = round(math.log2(factor * edge))
        found[level, *(math.floor(x / 2.0**level) for x in mean)].append(i)
    return list(found.values())


def members(voxels: Voxels) -> list[list[int]]:
    parts = voxels.order.split(voxels.counts.tolist())
    return sorted(part.tolist() for part in parts)


@pytest.mark.parametrize("factor", [1.0, 2**0.5, 11.0])
def test_voxels_are_those_of_a_dictionary(generator: torch.Generator, factor: float) -> None:
    means = cloud(generator, 500).means
    edges = torch.rand(500, generator=generator, dtype=torch.float64) * 0.3 + 1e-3
    voxels = fusion.find_voxels(means, edges, factor)
    assert members(voxels) == voxels_slowly(means, edges, factor)
    assert voxels.first.tolist() == [part[0] for part in voxels.order.split(voxels.counts.tolist())]


def test_voxels_finer_than_the_coordinates_do_not_overflow() -> None:
    means = torch.tensor([[1e6, -1e6, 3e5], [1e6, -1e6, 3e5], [0.0, 0, 0], [-1e6, 0, 0]])
    voxels = fusion.find_voxels(means, torch.full((4,), 1e-30))
    assert members(voxels) == [[0, 1], [2], [3]]
    assert fusion.find_voxels(means[:0], torch.zeros(0)).counts.tolist() == []


def merge_slowly(given: Cloud, groups: list[list[int]], alone: Tensor | None) -> list[dict]:
    """Means, covariance, opacity and harmonics of each voxel, in numpy."""
    found, sure = [], given.confidence
    assert sure is not None
    spread = covariance(given.scales, given.quats_wxyz).numpy()
    for rows in groups:
        if len(rows) == 1:
            (i,) = rows
            found.append({"mean": given.means[i], "cov": spread[i], "o": given.opacities[i]})
            found[-1] |= {"sh": given.sh[i], "sure": sure[i]}
            continue
        tau = -np.log(1 - np.minimum(given.opacities[rows].numpy(), 0.9999))
        area = np.array([math.prod(sorted(given.scales[i].tolist())[1:]) for i in rows])
        mass = tau * area
        weights = mass / mass.sum()
        cov = np.einsum("n,nij->ij", weights, spread[rows])
        variances = np.linalg.eigvalsh(cov)
        depth = mass.sum() / math.sqrt(variances[1] * variances[2])
        if alone is not None:
            typical = -(weights * np.log(1 - np.minimum(alone[rows].numpy(), 0.9999))).sum()
            growth = max(1.0, depth / typical)
            cov, depth = growth * cov, depth / growth
        sh = np.einsum("n,nkc->kc", weights, given.sh[rows].numpy())
        mean = weights @ given.means[rows].numpy()
        found.append({"mean": mean, "cov": cov, "o": min(0.99, 1 - math.exp(-depth)), "sh": sh})
        found[-1]["sure"] = weights @ sure[rows].numpy()
    return found


@pytest.mark.parametrize("grow", [False, True])
@pytest.mark.parametrize("at_once", [1 << 20, 7])
def test_merging_is_that_of_a_loop(
    generator: torch.Generator, grow: bool, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fusion, "AT_ONCE", at_once)
    given = cloud(generator, 60)
    given.opacities[:2] = torch.tensor([0.0, 1.0])
    edges = torch.full((60,), 1.0, dtype=torch.float64)
    alone = (1.5 * given.opacities).clamp(max=1) if grow else None
    voxels = fusion.find_voxels(given.means, edges)
    groups = voxels_slowly(given.means, edges, 1.0)
    assert {1, 2, 3} <= {len(rows) for rows in groups}
    merged = fusion.merge(given, voxels, alone)
    slow = merge_slowly(given, groups, alone)
    wanted = {name: torch.from_numpy(np.stack([row[name] for row in slow])) for name in slow[0]}
    torch.testing.assert_close(merged.means, wanted["mean"])
    torch.testing.assert_close(covariance(merged.scales, merged.quats_wxyz), wanted["cov"])
    torch.testing.assert_close(merged.opacities, wanted["o"])
    torch.testing.assert_close(merged.sh, wanted["sh"])
    torch.testing.assert_close(merged.confidence, wanted["sure"])
    single = torch.tensor([len(rows) == 1 for rows in groups])
    kept = given.at(torch.tensor([rows[0] for rows in groups if len(rows) == 1]))
    for ours, theirs in zip(vars(merged.at(single)).values(), vars(kept).values(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("grow", [False, True])
def test_mass_is_kept(generator: torch.Generator, grow: bool) -> None:
    given = cloud(generator, 200)
    given = replace(given, opacities=0.2 * given.opacities)  # none is capped after merging
    voxels = fusion.find_voxels(given.means, torch.full((200,), 1.0))
    merged = fusion.merge(given, voxels, given.opacities if grow else None)
    assert len(merged.means) < 100
    torch.testing.assert_close(merged.mass.sum(), given.mass.sum())


def test_faint_gaussians_without_mass_are_averaged(generator: torch.Generator) -> None:
    given = cloud(generator, 4, torch.float32)
    given = replace(given, opacities=torch.zeros(4))
    together = Voxels(torch.arange(4), torch.tensor([4]))
    for alone in (None, given.opacities):
        merged = fusion.merge(given, together, alone)
        torch.testing.assert_close(merged.means[0], given.means.mean(dim=0))
        assert merged.opacities.tolist() == [0.0]


def test_gradients_of_shares(generator: torch.Generator) -> None:
    opacities = (0.1 + 0.8 * torch.rand(6, generator=generator).double()).requires_grad_()
    sure = torch.rand(6, generator=generator).double().requires_grad_()
    agree = torch.tensor([0, 1, 2, 0, 1, 3])
    votes = Votes(agree, torch.zeros_like(agree), 0.7 * agree.double())
    assert torch.autograd.gradcheck(
        lambda o, c: fusion.share_opacities(o, c, votes), (opacities, sure)
    )


@pytest.mark.parametrize("grow", [False, True])
def test_gradients_of_merging(generator: torch.Generator, grow: bool) -> None:
    """Of what is drawn: means, covariances, opacities and harmonics."""
    given = cloud(generator, 9)
    given = replace(given, opacities=0.3 * given.opacities)
    voxels = Voxels(torch.randperm(9, generator=generator), torch.tensor([1, 3, 2, 1, 2]))

    def merged(*tensors: Tensor) -> tuple[Tensor, ...]:
        found = fusion.merge(Cloud(*tensors), voxels, 0.8 * given.opacities if grow else None)
        spread = covariance(found.scales, found.quats_wxyz)
        assert found.confidence is not None
        return found.means, spread, found.scales, found.opacities, found.sh, found.confidence

    inputs = [tensor.clone().requires_grad_() for tensor in vars(given).values()]
    assert torch.autograd.gradcheck(merged, inputs)


def test_merging_makes_nothing_surer_than_the_surest(generator: torch.Generator) -> None:
    given = cloud(generator, 3000, torch.float32)
    given = replace(given, confidence=torch.ones(3000))
    merged = fusion.merge(given, Voxels(torch.arange(3000), torch.full((1000,), 3)))
    assert merged.confidence is not None
    assert merged.confidence.max() <= 1
    torch.testing.assert_close(merged.confidence, torch.ones(1000))


def test_merging_is_the_same_every_time(generator: torch.Generator) -> None:
    given = cloud(generator, 500, torch.float32)
    edges = torch.full((500,), 0.5)
    one, other = (fusion.merge(given, fusion.find_voxels(given.means, edges)) for _ in range(2))
    for ours, theirs in zip(vars(one).values(), vars(other).values(), strict=True):
        assert torch.equal(ours, theirs)


def test_voxels_grow_for_a_budget(generator: torch.Generator) -> None:
    means = cloud(generator, 3000).means
    edges = 1e-3 * torch.exp(torch.randn(3000, generator=generator, dtype=torch.float64))
    smallest = len(fusion.find_voxels(means, edges).counts)
    assert smallest > 2500
    for count in (3000, 2500, 1000, 300):
        found = len(fusion.fit_voxels(means, edges, count).counts)
        sizes = [len(fusion.find_voxels(means, edges, 1.05**i).counts) for i in range(200)]
        fitting = max(size for size in sizes if size <= count)
        assert 0.9 * min(fitting, smallest) <= found <= fusion.EXCESS * count
    assert members(fusion.fit_voxels(means, edges, 3000)) == voxels_slowly(means, edges, 1.0)


def test_voxels_do_not_grow_for_ever() -> None:
    """Of different sizes they never become one: the budget then needs other means."""
    edges = 2.0 ** torch.arange(8)
    assert len(fusion.fit_voxels(torch.zeros(8, 3), edges, 3).counts) == 8


def test_the_heaviest_stay_in_their_order() -> None:
    mass = torch.tensor([1.0, 3.0, 2.0, 3.0, 0.5])
    assert fusion.find_heaviest(mass, 3).tolist() == [1, 2, 3]
    assert fusion.find_heaviest(mass, 1).tolist() == [1]
