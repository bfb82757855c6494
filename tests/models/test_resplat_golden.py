"""ReSplat against the official implementation: numbers of every step, and gradients.

Which points are neighbours is a matter of rounding where two are almost equally near. So tables of
neighbours are compared first, and then replaced by the official ones.
"""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import pmsplat
from pmsplat.kernels.neighbors import k_nearest
from pmsplat.models._update import Splats, State
from pmsplat.models.resplat import ReSplat
from pmsplat.zoo.convert import names_of, official_keys
from tests.models.official import script

QUICK = ["resplat_small_b2_v2_64x64_r2", "resplat_small_localknn_v4_64x96_r1"]
SLOW = [
    "resplat_small_v8_64x96_r1",
    "resplat_base_v3_64x64_r4",
    "resplat_base_halfres_v4_64x128_r2",
    "resplat_large_v2_64x96",
    "resplat_re10k_v2_64x96_r2",
    "resplat_re10k_init16_v2_64x96",
    "resplat_small_v2_64x800",
]
GIVEN = "resplat_refine_only_v2_64x64_r3"
LARGEST, MEAN = 5e-4, 1e-5  # errors in deviations
LOOSE = {"means": 4, "covariances": 4, "log_depth": 1}
ALIKE = 0.995  # rows of a table of neighbours that must be equal
NEAR = 1e-3  # relative gap of squared distances below which two neighbours are equally near
ROUNDING = 1e-5  # of the norms of gradients


class Case:
    """A golden file, the model of its weights, and its views."""

    def __init__(self, folder: Path, name: str) -> None:
        self.data = np.load(folder / f"{name}.npz")
        self.meta: dict[str, Any] = json.loads(str(self.data["meta"]))
        edits = json.dumps(self.meta["weight_edits"])
        with tempfile.TemporaryDirectory() as workdir:  # weights of up to 2 GB
            weights = f"{workdir}/weights.pth"
            keys = str(folder / f"{self.meta['model']}.keys.json")
            script(folder / "make_weights.py").main(["", keys, weights, "--edits", edits])
            model = pmsplat.load(self.meta["model"], weights=weights)
        assert isinstance(model, ReSplat)
        self.model = model
        cameras = (self["in/extrinsics"], self["in/intrinsics"], self["in/near"], self["in/far"])
        images = self["in/images_u8"].float() / 255
        self.views = pmsplat.Views(images, pmsplat.Cameras(*cameras))
        self.steps: int = self.meta["refinements"]
        config = self.meta.get("config") or {}
        model.windowed_neighbors = config.get("init_use_local_knn", False)

    def __getitem__(self, key: str) -> Tensor:
        return torch.from_numpy(np.asarray(self.data[key]))

    def table(self, key: str, count: int, local: bool) -> Tensor:
        """An official table of neighbours of so many scenes, within each scene."""
        found = torch.from_numpy(self.data[f"knn/{key}"].astype(np.int64))
        found = found.reshape(count, -1, found.shape[-1])
        first = torch.arange(count)[:, None, None] * found.shape[1]
        return found if local else found - first

    def gaps(self, ours: Tensor, points: Tensor, official: Tensor) -> Tensor:
        """By how much the farthest neighbour differs, relatively, in each row that does."""
        unequal = (ours.sort(dim=-1).values != official.sort(dim=-1).values).any(dim=-1)
        assert unequal.double().mean() <= 1 - ALIKE
        scene, row = unequal.nonzero(as_tuple=True)
        reach = [
            (points[scene, row, None] - points[scene[:, None], table[scene, row]])
            .square()
            .sum(dim=-1)
            .amax(dim=-1)
            for table in (ours, official)
        ]
        return (reach[0] - reach[1]).abs() / reach[1]

    @contextmanager
    def given(self, monkeypatch: pytest.MonkeyPatch, pictures: bool) -> Iterator[None]:
        """Official neighbours, once ours are compared with them, and official pictures."""
        model, keys = self.model, iter(["init", *(f"step{t + 1}" for t in range(self.steps))])
        find, turns = model._neighbors, iter(range(self.steps))

        def neighbors(places: Tensor, cameras: pmsplat.Cameras, count: int) -> Tensor:
            ours = find(places, cameras, count)
            official = self.table(next(keys), len(ours), model.windowed_neighbors)
            assert (self.gaps(ours, places.flatten(1, 3), official) < NEAR).all()
            return official

        def draw(*_: object) -> pmsplat.Rendering:
            color = self[f"render/{next(turns)}"]
            return pmsplat.Rendering(color, color[:, :, 0], color[:, :, 0])

        with monkeypatch.context() as patched:
            patched.setattr(model, "_neighbors", neighbors)
            if pictures:
                patched.setattr(model, "draw", draw)
            yield

    def compare(self, level: pmsplat.Gaussians, prefix: str, factor: float = 1) -> None:
        at = self["out/gauss_idx"]
        found = {
            "means": level.means,
            "scales": level.scales,
            "opacities": level.opacities,
            "harmonics": level.sh.transpose(-1, -2),
        }
        if f"out/{prefix}covariances" in self.data.files:
            found["covariances"] = level.covariances
        for name, value in found.items():
            close(value[:, at], self[f"out/{prefix}{name}"], prefix + name, factor)


def close(ours: Tensor, official: Tensor, what: str, factor: float = 1) -> None:
    factor *= LOOSE.get(what.split("/")[-1], 1)
    assert ours.shape == official.shape, what
    error = (ours.double() - official.double()).abs() / official.double().std()
    assert error.max() < factor * LARGEST, what
    assert error.mean() < factor * MEAN, what


def check(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    for own, factor in ((False, 1), (True, 4)):
        with torch.no_grad(), case.given(monkeypatch, pictures=not own):
            found = case.model(case.views, steps=case.steps, all_levels=True)
        assert len(found.gaussians) == case.steps + 1
        stride = 1 if "out/depth" in case.data.files else 4
        official = case["out/depth" if stride == 1 else "out/depth_stride4"]
        close(found.depths[-1][..., ::stride, ::stride].log(), official.log(), "log_depth")
        case.compare(found.gaussians[0], "")
        for step, level in enumerate(found.gaussians[1:], start=1):
            case.compare(level, f"step{step}/", factor)


@pytest.mark.parametrize("name", QUICK)
def test_small_models_equal_the_official_ones(
    name: str, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(Case(shared / "reference", name), monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_published_models_equal_the_official_ones(
    name: str, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(Case(shared / "reference", name), monkeypatch)


def test_every_case_is_listed(shared: Path) -> None:
    found = {f.stem for f in (shared / "reference").glob("resplat_*.npz")}
    assert found == {*QUICK, *SLOW, GIVEN}


def test_the_update_of_given_gaussians_equals_the_official_one(shared: Path) -> None:
    """Opacities of 1 among them, whose logits are held."""
    case = Case(shared / "reference", GIVEN)
    update, at = case.model.update, case["out/gauss_idx"]
    assert update is not None
    generator = np.random.Generator(np.random.PCG64(7501))
    condition = torch.from_numpy(generator.standard_normal((2, 256, 16, 16)).astype(np.float32))
    names = ("means", "scales", "rotations_unnorm", "opacities", "harmonics")
    means, scales, quats, opacities, harmonics = (case[f"in/init/{name}"] for name in names)
    assert (opacities == 1).any()
    splats = Splats(means, scales, quats, opacities, harmonics.transpose(-1, -2))
    with torch.no_grad():
        photos = update.observe(case.views.images)
        state = update.start(splats, condition, photos)
        for step in range(1, case.steps + 1):
            means = state.splats.means
            official = case.table(f"step{step}", 1, local=False)
            assert (case.gaps(k_nearest(means, means, 8), means, official) < NEAR).all()
            state = update.step(state, case[f"render/{step - 1}"], photos, official)
            middle = f"mid/state_t{step}/"
            remembered = state.hidden.flatten()[case[middle + "idx"]]
            close(remembered, case[middle + "val"], "state")
            found = state.splats
            sh = found.sh.transpose(-1, -2)
            values = (found.means, found.scales, found.quats_xyzw, found.opacities, sh)
            for name, value in zip(names, values, strict=True):
                close(value[:, at], case[f"out/step{step}/{name}"], name)


def weighted(outputs: list[Tensor]) -> Tensor:
    """The reference's loss of some outputs."""
    loss = torch.zeros(())
    for index, output in enumerate(outputs):
        generator = np.random.Generator(np.random.PCG64(5000 + index))
        weight = generator.standard_normal(tuple(output.shape)).astype(np.float32)
        loss = loss + (torch.from_numpy(weight) * output).mean()
    return loss


def compare_gradients(case: Case, tolerance: float) -> None:
    """Norms, and samples, of all official gradients, and of those that there are none."""
    golden, names = case.data, names_of(case.model)
    norms = dict(zip(golden["names"].tolist(), golden["norms"].tolist(), strict=True))
    largest, found = max(norms.values()), set()
    for name, parameter in case.model.named_parameters():
        keys = official_keys(name, names)
        if parameter.grad is None:
            assert not found.intersection(keys) and not set(keys) & norms.keys(), name
            continue
        for key, gradient in zip(keys, parameter.grad.chunk(len(keys)), strict=True):
            found.add(key)
            norm = gradient.double().norm().item()
            assert norm == pytest.approx(norms[key], rel=tolerance, abs=1e-7 * largest), key
            flat = gradient.flatten()
            at = np.unique(np.linspace(0, len(flat) - 1, 12).astype(np.int64))
            error = np.abs(flat.numpy()[at] - golden[f"grad/{key}"]).max()
            assert error < 0.02 * norms[key] / len(flat) ** 0.5 + 1e-9 * largest, key
    assert found == norms.keys()


@pytest.mark.slow
def test_gradients_of_the_initial_model_equal_the_official_ones(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(shared / "reference", "grads_resplat_small_init_v2_64x64")
    found = case.model(case.views, steps=0)
    splats = found.gaussians[-1]
    sh = splats.sh.transpose(-1, -2)
    outputs = [found.depths[-1].log(), splats.means, splats.covariances, sh, splats.opacities]
    loss = weighted(outputs)
    assert loss.item() == pytest.approx(case.meta["loss"], rel=1e-4)
    loss.backward()
    compare_gradients(case, 3 * ROUNDING)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "tolerance"), [("refine_given", ROUNDING), ("refine", 3 * ROUNDING)]
)
def test_gradients_of_the_update_equal_the_official_ones(
    kind: str, tolerance: float, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With given pictures, and through those that it draws itself."""
    case = Case(shared / "reference", f"grads_resplat_small_{kind}_v2_64x64_r2")
    model, states = case.model, []
    for part in (model.depth, model.points, model.head):
        part.requires_grad_(False)
    assert model.update is not None
    step = model.update.step

    def spy(state: State, *given: Any) -> State:
        states.append(step(state, *given))
        return states[-1]

    monkeypatch.setattr(model.update, "step", spy)
    with case.given(monkeypatch, pictures=kind == "refine_given"):
        found = model(case.views, steps=case.steps, all_levels=True)
    outputs = []
    for state in states:
        splats = state.splats
        quats = splats.quats_xyzw / (splats.quats_xyzw.norm(dim=-1, keepdim=True) + 1e-8)
        sh = splats.sh.transpose(-1, -2)
        outputs += [splats.means, splats.scales, quats, splats.opacities, sh]
    loss = weighted(outputs)
    assert loss.item() == pytest.approx(case.meta["loss"], rel=1e-4)
    loss.backward()
    compare_gradients(case, tolerance)
    assert found.gaussians[-1].means.requires_grad
    assert not found.gaussians[0].means.requires_grad
