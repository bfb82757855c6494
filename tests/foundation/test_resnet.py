"""The first half of ResNet-18 beside torchvision's."""

import pytest
import torch
from torch.nn.functional import pad
from torchvision.models import resnet18

from pmsplat.errors import UserError
from pmsplat.foundation import resnet


def pair() -> tuple[resnet.ResNet, torch.nn.Module]:
    """Ours and torchvision's, with the same weights and statistics, none of them trivial."""
    torch.manual_seed(0)
    theirs = resnet18(weights=None).eval()
    for name, value in theirs.state_dict().items():
        if name.endswith("running_mean"):
            value.normal_(0, 0.1)
        elif name.endswith("running_var"):
            value.uniform_(0.5, 1.5)
    ours = resnet.ResNet()
    kept = {name: theirs.state_dict()[name] for name in ours.state_dict()}
    ours.load_state_dict(kept)
    return ours, theirs


@pytest.mark.parametrize("train", [False, True])
def test_maps_are_torchvisions_in_eval_mode_always(train: bool) -> None:
    ours, theirs = pair()
    images = torch.rand(2, 3, 40, 56)
    mean, std = (torch.tensor(x)[:, None, None] for x in (resnet.MEAN, resnet.STD))
    with torch.no_grad():
        stem = theirs.conv1((images - mean) / std)  # pyright: ignore
        first = theirs.layer1(theirs.maxpool(theirs.bn1(stem).relu()))  # pyright: ignore
        expected = stem, first, theirs.layer2(first)  # pyright: ignore
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    found = ours.train(train)(images)
    for ours_map, their_map in zip(found, expected, strict=True):
        torch.testing.assert_close(ours_map, their_map, atol=1e-5, rtol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in ours.state_dict().items())


def test_it_is_frozen_but_lets_gradients_through() -> None:
    ours, _ = pair()
    images = pad(torch.rand(1, 3, 30, 30), (1, 1, 1, 1)).requires_grad_()
    sum(x.sum() for x in ours(images)).backward()  # pyright: ignore
    assert images.grad is not None and images.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in ours.parameters())


def test_weights_that_cannot_be_had_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.models import ResNet18_Weights

    def fail(*_: object, **__: object) -> None:
        raise TimeoutError

    monkeypatch.setattr(ResNet18_Weights, "get_state_dict", fail)
    with pytest.raises(UserError, match=r"ResNet-18's weights .* cannot be downloaded"):
        resnet.released()
