import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer

from pmsplat.errors import UserError
from pmsplat.foundation.dinov2 import DinoV2
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


def test_an_unknown_size_is_told() -> None:
    with pytest.raises(UserError, match="vit 'vith'; wanted one of vits, vitb, vitl"):
        DinoV2("vith")
