"""Samplers: their schedules, and their distributions against enumeration."""

from collections import Counter

import numpy as np
import pytest
import torch

from pmsplat.data import Bounded, Frames, Gap, Spread
from pmsplat.data._sampling import farthest_points, make_sampler
from pmsplat.errors import UserError

DRAWS = 6000


def centers(count: int) -> torch.Tensor:
    return torch.arange(count, dtype=torch.float32)[:, None] * torch.tensor([1.0, 0.2, 0.0])


def draw(sampler: Bounded | Spread, count: int, seed: int = 0) -> list[Frames]:
    generator = torch.Generator().manual_seed(seed)
    drawn = [sampler(centers(count), 0, generator) for _ in range(DRAWS)]
    return [frames for frames in drawn if frames is not None]


def check_distribution(found: Counter, want: dict) -> None:
    """Chi-square far inside what chance gives."""
    total = sum(found.values())
    assert set(found) <= set(want)
    chi2 = sum((found[key] - p * total) ** 2 / (p * total) for key, p in want.items())
    freedom = len(want) - 1
    assert chi2 < freedom + 5 * (2 * freedom) ** 0.5


def test_schedule_is_the_published_one() -> None:
    gap = Gap((25, 45), (45, 135), 30_000)
    assert gap.at(0) == (25, 45)
    assert gap.at(10_000) == (25 + int(20 / 3), 45 + 30)
    assert gap.at(29_999) == (44, 134)
    assert gap.at(30_000) == gap.at(10**9) == (45, 135)


def test_bounded_pairs_are_uniform_in_gap_then_place() -> None:
    sampler = Bounded(Gap((2, 2), (4, 4)), targets=3)
    drawn = draw(sampler, 7)
    want = {(left, left + gap): 1 / 3 / (7 - gap) for gap in (2, 3, 4) for left in range(7 - gap)}
    check_distribution(Counter((f.context[0], f.context[1]) for f in drawn), want)
    inside = Counter(
        target for f in drawn if f.context == (1, 4) for target in f.target
    )  # the context frames too, with replacement
    check_distribution(inside, dict.fromkeys((1, 2, 3, 4), 1 / 4))


def test_the_longest_gap_stays_longer_than_the_shortest() -> None:
    """MVSplat's code overwrites the longest gap by the shortest; here both ends occur."""
    gaps = {f.context[1] - f.context[0] for f in draw(Bounded(Gap((2, 2), (5, 5)), 1), 40)}
    assert gaps == {2, 3, 4, 5}


def test_a_short_scene_limits_the_gap_or_is_passed_over() -> None:
    generator = torch.Generator().manual_seed(0)
    assert Bounded(Gap((5, 5), (9, 9)), 1)(centers(5), 0, generator) is None
    frames = Bounded(Gap((4, 4), (9, 9)), 1)(centers(5), 0, generator)
    assert frames is not None and frames.context == (0, 4)


@pytest.mark.parametrize("views", [2, 3, 5])
def test_spread_views_are_farthest_points_between_the_ends(views: int) -> None:
    sampler = Spread(Gap((8, 8), (12, 12)), (views, views), targets=4)
    for frames in draw(sampler, 30)[:300]:
        left, right = frames.context[0], frames.context[-1]
        assert 8 <= right - left <= 12
        assert len(set(frames.context)) == views and list(frames.context) == sorted(frames.context)
        assert len(set(frames.target)) == 4 and list(frames.target) == sorted(frames.target)
        assert left <= min(frames.target) and max(frames.target) <= right
        if views == 3:
            assert abs(frames.context[1] - (left + right) / 2) <= 1


def slow_farthest_points(points: np.ndarray, count: int) -> list[int]:
    """By the words alone: all pairs, in float64."""
    apart = np.linalg.norm(points[:, None] - points[None], axis=-1)
    chosen = [int(np.linalg.norm(points - points.mean(axis=0), axis=-1).argmax())]
    while len(chosen) < count:
        chosen.append(int(apart[:, chosen].min(axis=1).argmax()))
    return sorted(chosen)


@pytest.mark.parametrize("step", [0, 5_000, 10_000])
def test_resplat_samples_as_published(step: int) -> None:
    """Its 8 views of DL3DV: gaps of 20 to 30 frames that grow to 24 to 45.

    The walk winds, so that it matters which points are farthest. Two ends explain every example.
    """
    t = torch.arange(90.0)
    walk = torch.stack([(t / 5).cos() * t, (t / 5).sin() * 20, (t / 3).cos() * 9], dim=1)
    low, high = {0: (20, 30), 5_000: (22, 37), 10_000: (24, 45)}[step]
    explained: dict[tuple[int, ...], list[tuple[int, int]]] = {}  # context views: possible ends
    for gap in range(low, high + 1):
        for left in range(90 - gap):
            part = walk[left : left + gap + 1].double().numpy()
            context = tuple(left + i for i in slow_farthest_points(part, 8))
            explained.setdefault(context, []).append((left, left + gap))
    sampler = Spread(Gap((20, 24), (30, 45), 10_000), (8, 8), targets=6)
    generator = torch.Generator().manual_seed(step)
    gaps = set()  # of examples that tell theirs
    for _ in range(1000):
        frames = sampler(walk, step, generator)
        assert frames is not None
        ends = [
            (left, right)
            for left, right in explained[frames.context]
            if left <= min(frames.target) and max(frames.target) <= right
        ]
        assert ends
        assert list(frames.target) == sorted(set(frames.target)) and len(frames.target) == 6
        if len(ends) == 1:
            gaps.add(ends[0][1] - ends[0][0])
    assert {low, high} <= gaps <= set(range(low, high + 1))


def test_a_random_number_of_views_shrinks_the_gap() -> None:
    """With k of at most 6 views the gaps are divided by max(6 // k, 1)."""
    sampler = Spread(Gap((18, 18), (24, 24)), (2, 6), targets=2)
    drawn = draw(sampler, 60)
    check_distribution(
        Counter(len(f.context) for f in drawn), dict.fromkeys((2, 3, 4, 5, 6), 1 / 5)
    )
    for frames in drawn[:500]:
        divisor = max(6 // len(frames.context), 1)
        assert 18 // divisor <= frames.context[-1] - frames.context[0] <= 24 // divisor


@pytest.mark.parametrize("count", [4, 9, 16])
def test_a_number_of_views_that_is_given_is_taken(count: int) -> None:
    """The rest is drawn as if it had been drawn, gap included."""
    sampler = Spread(Gap((20, 20), (40, 40)), (4, 16), targets=2)
    given = torch.Generator().manual_seed(3)
    own = torch.Generator().manual_seed(3)
    for _ in range(200):
        frames = sampler(centers(60), 0, given, count)
        drawn = sampler(centers(60), 0, own)
        assert frames is not None and drawn is not None
        assert len(frames.context) == count
        divisor = max(16 // count, 1)
        assert frames.context[-1] - frames.context[0] <= 40 // divisor
        if len(drawn.context) == count:
            assert frames == drawn
        own.set_state(given.get_state())


def test_two_views_are_drawn_as_for_realestate10k_and_more_as_for_dl3dv() -> None:
    gap = Gap((4, 4), (20, 20))
    assert make_sampler(gap, (2, 2), 3, 1) == Bounded(gap, 3, 1)
    assert make_sampler(gap, (2, 6), 3, 1) == Spread(gap, (2, 6), 3, 1)
    generator = torch.Generator().manual_seed(0)
    counts = {Bounded(gap, 3).count_views(generator) for _ in range(9)}
    assert counts == {2}
    drawn = Counter(Spread(gap, (4, 7), 3).count_views(generator) for _ in range(DRAWS))
    check_distribution(drawn, dict.fromkeys((4, 5, 6, 7), 1 / 4))


def test_targets_repeat_only_where_frames_run_out() -> None:
    generator = torch.Generator().manual_seed(0)
    frames = Spread(Gap((3, 3), (3, 3)), (2, 2), targets=8)(centers(9), 0, generator)
    assert frames is not None
    assert sorted(Counter(frames.target).values()) == [2, 2, 2, 2]


def test_without_extrapolation_the_frames_are_those_of_ever() -> None:
    """Drawn by the samplers before they could extrapolate; the generator is left where it was."""
    generator = torch.Generator().manual_seed(7)
    bounded = Bounded(Gap((4, 4), (9, 9)), 4, extrapolate=0)
    spread = Spread(Gap((8, 8), (12, 12)), (2, 4), 4, extrapolate=0)
    assert [bounded(centers(40), 0, generator) for _ in range(3)] == [
        Frames((25, 32), (26, 31, 28, 28)),
        Frames((16, 25), (24, 17, 24, 17)),
        Frames((15, 21), (17, 16, 15, 18)),
    ]
    assert [spread(centers(40), 0, generator) for _ in range(3)] == [
        Frames((12, 16), (12, 14, 15, 16)),
        Frames((27, 32, 35, 38), (30, 31, 32, 33)),
        Frames((21, 24, 27, 33), (21, 24, 25, 33)),
    ]
    assert int(torch.randint(0, 10**6, (), generator=generator)) == 985800


@pytest.mark.parametrize("kind", ["bounded", "spread"])
def test_extrapolation_reaches_as_far_as_asked_and_as_the_scene_goes(kind: str) -> None:
    gap = Gap((3, 3), (3, 3))
    sampler = Bounded(gap, 2, 2) if kind == "bounded" else Spread(gap, (2, 2), 2, 2)
    drawn = draw(sampler, 9)
    for left, frames in ((0, range(6)), (2, range(8)), (5, range(3, 9))):
        found = Counter(i for f in drawn if f.context[0] == left for i in f.target)
        check_distribution(found, dict.fromkeys(frames, 1 / len(frames)))
    assert {(f.context[0], f.context[-1]) for f in drawn} == {(i, i + 3) for i in range(6)}


def test_extrapolation_leaves_the_context_views_alone() -> None:
    contexts = []
    for beyond in (0, 3):
        generator = torch.Generator().manual_seed(3)
        sampler = Spread(Gap((8, 8), (12, 12)), (4, 4), 5, beyond)
        frames = sampler(centers(40), 0, generator)
        assert frames is not None
        contexts.append(frames.context)
    assert contexts[0] == contexts[1]


def test_a_negative_reach_is_told() -> None:
    with pytest.raises(UserError, match=r"dataset\.extrapolate=-1; wanted 0 or more frames"):
        Bounded(Gap((1, 1), (2, 2)), 1, -1)


def test_farthest_points_against_the_definition(generator: torch.Generator) -> None:
    points = torch.randn(40, 3, generator=generator, dtype=torch.float64)
    chosen = farthest_points(points, 7)
    assert chosen[0] == int((points - points.mean(0)).norm(dim=1).argmax())
    for i in range(1, 7):
        nearest = torch.cdist(points, points[chosen[:i]]).amin(dim=1)
        assert chosen[i] == int(nearest.argmax())


def test_farthest_points_never_repeat() -> None:
    assert sorted(farthest_points(torch.zeros(4, 3), 4)) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "gap",
    [((8, 8), (4, 4)), ((0, 0), (0, 0)), ((0, 5), (9, 9)), ((5, 5), (9, 4)), ((-1, 2), (3, 3))],
)
def test_gaps_that_no_scene_has_are_told_at_both_ends(gap: tuple) -> None:
    with pytest.raises(UserError, match=r"wanted a shortest gap of 1 frame.*dataset\.min_gap"):
        Gap(*gap, warm_up=10)


def test_a_start_that_never_comes_is_not_asked_about() -> None:
    """Without a warm-up only the second numbers count."""
    assert Gap((50, 20), (30, 30), warm_up=0).at(0) == (20, 30)


@pytest.mark.parametrize("views", [(1, 1), (0, 0), (-1, 2), (3, 2)])
def test_fewer_than_two_context_views_are_told(views: tuple[int, int]) -> None:
    told = rf"dataset\.views=\[{views[0]},{views[1]}\]; wanted 2 or more"
    with pytest.raises(UserError, match=told):
        Spread(Gap((4, 4), (8, 8)), views, 2)


def test_more_views_than_the_gap_has_frames_are_told() -> None:
    Spread(Gap((1, 1), (4, 4)), (2, 5), 2)
    with pytest.raises(UserError, match=r"6 context views at most 4 frames apart.*dataset\.gap"):
        Spread(Gap((1, 1), (4, 4)), (2, 6), 2)
    with pytest.raises(UserError, match=r"6 context views at most 4 frames apart at step 9"):
        Spread(Gap((1, 1), (5, 4), 9), (2, 6), 2)


def test_no_targets_are_told() -> None:
    told = r"dataset\.target_views=0; wanted 1 or more views to reproduce"
    with pytest.raises(UserError, match=told):
        Bounded(Gap((1, 1), (2, 2)), 0)
    with pytest.raises(UserError, match=told):
        Spread(Gap((1, 1), (2, 2)), (2, 2), 0)
