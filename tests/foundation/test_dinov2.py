import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer

from pmsplat.errors import UserError
from pmsplat.foundation.dinov2 import DinoV2, patches_within
from tests.golden import components


@pytest.fixture(scope="module")
def small() -> DinoV2:
    torch.manual_seed(0)
    return DinoV2("vits").eval()


def test_position_embeddings_are_resized_as_in_the_official_code(small: DinoV2) -> None:
    golden = components("vitpos")
    assert small.vit.pos_embed is not None
    kept = small.vit.pos_embed.detach().clone()
    with torch.no_grad():
        small.vit.pos_embed[0, :, :4] = golden.pop("518x518_c0to4")
        for name, expected in golden.items():
            height, width = (int(x) // 14 for x in name.removesuffix("_c0to4").split("x"))
            found = small.position(height, width)[:, :4]
            torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-5)
        small.vit.pos_embed.copy_(kept)


def test_taps_are_timms_own_after_the_final_norm(small: DinoV2) -> None:
    """A plain timm network for 5x4 patches, with the same weights and the resized positions."""
    with torch.device("meta"):
        plain = timm.create_model("vit_small_patch14_dinov2", num_classes=0, img_size=(70, 56))
    assert isinstance(plain, VisionTransformer)
    images = torch.randn(1, 3, 70, 56)
    with torch.no_grad():
        state = {**small.vit.state_dict(), "pos_embed": small.position(5, 4)[None]}
        plain.load_state_dict(state, assign=True)
        expected = plain.eval().forward_intermediates(
            images, indices=[2, 5, 8, 11], norm=True, intermediates_only=True
        )
        found = small(images)
    torch.testing.assert_close(list(found), expected, atol=2e-5, rtol=1e-4)


def test_large_images_are_seen_within_the_limit() -> None:
    """As the official code has it where it takes the image: by width, and no higher than wide."""

    def official(height: int, width: int) -> tuple[int, int]:
        if width > 560:
            height, width = int(height / width * 560), 560
        return height // 14, width // 14

    sizes = ((256, 448), (352, 640), (512, 960), (576, 960), (64, 800), (560, 560), (720, 720))
    for height, width in sizes:
        assert patches_within(height, width, 560) == official(height, width)
        assert patches_within(width, height, 560) == official(height, width)[::-1]
    assert patches_within(512, 960) == (36, 68)
    assert patches_within(16, 1600, 560) == (1, 40)  # a row at least


def test_a_limit_gives_smaller_maps(small: DinoV2) -> None:
    assert small.limit == 0
    limited = DinoV2("vits", limit=28)
    with torch.no_grad():
        sizes = [tuple(x.shape[-2:]) for x in limited(torch.rand(1, 3, 70, 42))]
    assert sizes == [(2, 1)] * 4


def test_an_unknown_size_is_told() -> None:
    with pytest.raises(UserError, match="vit 'vith'; wanted one of vits, vitb, vitl"):
        DinoV2("vith")
