"""The CNN, the U-Net and the dense head: what their docstrings promise."""

import torch

from pmsplat.nn.cnn import CNN
from pmsplat.nn.dpt import DPT
from pmsplat.nn.unet import UNet


def test_cnn_resolutions_follow_the_strides() -> None:
    images = torch.rand(1, 3, 32, 48)
    for strides, expected in (
        ((1, 1, 2), (2, 2, 4)),
        ((1, 2, 2), (2, 4, 8)),
        ((1, 2, 1), (2, 4, 4)),
    ):
        found = CNN((8, 12, 16), strides)(images)
        assert [x.shape[1:] for x in found] == [
            (c, 32 // s, 48 // s) for c, s in zip((8, 12, 16), expected, strict=True)
        ]


def test_cnn_does_not_see_contrast_or_brightness() -> None:
    """Instance norms take both away, and take maps far from zero as well as any."""
    torch.manual_seed(0)
    cnn = CNN((8, 12, 16), (1, 1, 2))
    images = torch.rand(2, 3, 32, 48)
    exact = cnn.double()(images.double())
    found = cnn.float()(images)
    for x, y in zip(found, exact, strict=True):
        torch.testing.assert_close(x.double(), y, atol=2e-4, rtol=0)
    brighter = cnn(3 * images)
    torch.testing.assert_close(brighter[-1], found[-1], atol=2e-2, rtol=0)


def test_a_unet_starts_silent_and_lets_views_talk() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 16, 8, 8)
    for post_norm in (False, True):
        unet = UNet((16, 16, 32), head=8, post_norm=post_norm)
        if not post_norm:
            assert (unet(x, 2) == 0).all()
        for parameter in unet.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        changed = x.clone()
        changed[1] += torch.randn(16, 8, 8)
        moved = (unet(changed, 2) - unet(x, 2)).abs().amax((1, 2, 3))
        assert moved[0] > 1e-5 and moved[1] > 1e-5  # views of one scene
        assert (moved[2:] == 0).all()  # and not of another
        assert unet(x, 2).shape == x.shape


def test_a_dense_head_doubles_its_finest_level_with_or_without_a_backbone() -> None:
    fine, coarse = torch.randn(1, 6, 16, 24), torch.randn(1, 7, 8, 12)
    before, after = [[fine], [], [], []], [[], [coarse], [], []]
    vit = [torch.randn(1, 10, 4, 6) for _ in range(4)]
    widths = (4, 8, 12, 16)
    with_vit = DPT(10, widths, (6, 0, 0, 0), (0, 7, 0, 0), features=5)
    assert with_vit(vit, before, after).shape == (1, 5, 32, 48)
    without = DPT(0, widths, (6, 0, 0, 0), (0, 7, 0, 0), features=5)
    assert without((), before, after).shape == (1, 5, 32, 48)
    assert without.levels == [0, 1]
