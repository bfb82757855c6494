"""The card of a model on the hub: README.md with a head in YAML, as the hub reads it."""

from dataclasses import dataclass

from ..contracts import encoder_traits
from ..io.hub_models import Score, write_front_matter
from .init import NON_COMMERCIAL
from .load import Loaded
from .trained import TrainedOn

TAGS = ["gaussian-splatting", "novel-view-synthesis", "3d-reconstruction", "multi-view"]


@dataclass(frozen=True)
class About:
    """What a card says that the model itself does not know.

    `license` is an identifier of the hub ("mit"); `datasets` names on the hub; `training` and
    `notes` are lines; `scores` are means over evaluations.
    """

    license: str | None = None
    datasets: tuple[str, ...] = ()
    training: tuple[str, ...] = ()
    scores: tuple[Score, ...] = ()
    notes: tuple[str, ...] = ()


def restrictions(loaded: Loaded) -> dict[str, str]:
    """The restrictive licenses of weights that a model started from, by the name of these."""
    sources = list(getattr(loaded.settings, "init_from", None) or ())
    return {name: NON_COMMERCIAL[name] for name in sources if name in NON_COMMERCIAL}


def write_card(loaded: Loaded, name: str, trained: TrainedOn | None, about: About) -> str:
    """The text of README.md; `name` is what its examples load."""
    draws = encoder_traits(loaded.model).draws
    fields = {
        "license": about.license,
        "pipeline_tag": "image-to-3d" if draws else "depth-estimation",
        "tags": [*TAGS, loaded.component] if draws else ["multi-view", loaded.component],
        "datasets": list(about.datasets),
    }
    short = name.rpartition("/")[2].partition("@")[0]
    parts = [
        write_front_matter(short, fields, about.scores),
        f"# {short}\n",
        _introduce(loaded, draws),
        _example(name, draws),
        _describe(loaded, trained, about),
        _table(about.scores),
        _license(loaded, about),
        "".join(f"\n{note}\n" for note in about.notes),
    ]
    return "\n".join(part for part in parts if part)


def _introduce(loaded: Loaded, draws: bool) -> str:
    count = sum(parameter.numel() for parameter in loaded.model.parameters())
    what = "depth and 3D Gaussians" if draws else "depth"
    return (
        f"A feed-forward model: two or more photographs with their cameras in, {what} out, in one "
        f"pass. It is a `{loaded.component}` of pmsplat with {count / 1e6:.1f} million "
        "parameters.\n"
    )


def _example(name: str, draws: bool) -> str:
    verb = "predict" if draws else "depth"
    result = (
        'pmsplat.save_ply(prediction.gaussians[-1], "photos.ply")'
        if draws
        else "depth = prediction.depths[-1]  # [batch, view, height, width]"
    )
    return f"""## Use

```python
import pmsplat

model = pmsplat.load("{name}")
views = pmsplat.read_views("photos/")  # with cameras, or posed by pycolmap
prediction = pmsplat.infer(model, views)
{result}
```

```sh
pmsplat {verb} photos/ --model {name} --output out
```
"""


def _describe(loaded: Loaded, trained: TrainedOn | None, about: About) -> str:
    lines = list(about.training)
    near = encoder_traits(loaded.model).near
    if trained is not None:
        lines.insert(0, f"Data: {trained.data}")
        if trained.views is not None:
            least, most = trained.views
            lines.append(f"Context views: {least if least == most else f'{least} to {most}'}")
        if trained.size is not None:
            lines.append(f"Size: {trained.size[0]}x{trained.size[1]} pixels (height x width)")
    if near is not None:
        lines.append(f"Unit of length: scenes are scaled until their nearest depth is {near:g}")
    return "## Training\n\n" + "".join(f"- {line}\n" for line in lines) if lines else ""


def _table(scores: tuple[Score, ...]) -> str:
    if not scores:
        return ""
    metrics = list(dict.fromkeys(score.metric for score in scores))
    found = {(score.data, score.metric): score.value for score in scores}
    rows = ["| data | " + " | ".join(name.upper() for name in metrics) + " |"]
    rows.append("|---|" + "---:|" * len(metrics))
    for data in dict.fromkeys(score.data for score in scores):
        cells = [found.get((data, name)) for name in metrics]
        texts = ["–" if value is None else f"{value:.3f}" for value in cells]
        rows.append(f"| {data} | " + " | ".join(texts) + " |")
    return "## Results\n\n" + "\n".join(rows) + "\n"


def _license(loaded: Loaded, about: About) -> str:
    text = "## License\n\n"
    text += f"{about.license}\n" if about.license else "The author has not named a license.\n"
    for source, terms in restrictions(loaded).items():
        text += f"\nTraining started from {source}, whose license is {terms}.\n"
    return text
