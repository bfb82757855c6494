"""What pyproject.toml cannot say: a wheel carries `config/` as `pmsplat/configuration/`, the
weights that ship as `pmsplat/weights/`, and the photographs of the demo as `pmsplat/office/`."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

FILES = (
    ("config", "*.yaml", "configuration"),
    ("pretrained", "pmsplat-*.safetensors", "weights"),
    ("assets/office", "*", "office"),
)


class BuildWithConfiguration(build_py):
    """Copies these files into what is built; an editable install reads them where they are."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for source, pattern, folder in FILES:
            for file in filter(Path.is_file, Path(source).rglob(pattern)):
                self._copy(file, Path("pmsplat", folder, file.relative_to(source)))

    def _copy(self, file: Path, name: Path) -> None:
        place = Path(self.build_lib, name)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, place)


setup(cmdclass={"build_py": BuildWithConfiguration})
