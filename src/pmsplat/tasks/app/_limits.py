"""How much a visitor may bring, and how that is said."""

from dataclasses import dataclass

from ...errors import UserError


@dataclass(frozen=True)
class Limits:
    """The most that one visitor may bring.

    `photos`; `megabytes` of all files together; `megapixels` of a photo or of a frame; `seconds` of
    a video; `files` in a .zip, cameras included. `minutes` is how long files are kept without a
    visit. Raises UserError for numbers below 1, and for fewer than two photos.
    """

    photos: int = 40
    megabytes: int = 200
    megapixels: int = 50
    seconds: int = 60
    files: int = 500
    minutes: int = 60

    def __post_init__(self) -> None:
        low = [name for name, least in self._least().items() if getattr(self, name) < least]
        if low:
            raise UserError(
                f"a limit of {getattr(self, low[0])} {low[0]}",
                f"at least {self._least()[low[0]]}",
                "choose a larger one",
            )

    def describe(self) -> str:
        """One sentence for visitors."""
        return (
            f"At most {self.photos} photos of up to {self.megapixels} megapixels, or one video of "
            f"up to {self.seconds} seconds, or one .zip; {self.megabytes} MB in all."
        )

    @staticmethod
    def _least() -> dict[str, int]:
        names = ("megabytes", "megapixels", "seconds", "files", "minutes")
        return {"photos": 2} | dict.fromkeys(names, 1)
