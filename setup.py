"""What pyproject.toml cannot say: a wheel carries `config/` as `pmsplat/configuration/`."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConfiguration(build_py):
    """Copies the YAML files into what is built; an editable install reads `config/` itself."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for file in Path("config").rglob("*.yaml"):
            place = Path(self.build_lib, "pmsplat", "configuration", *file.parts[1:])
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place)


setup(cmdclass={"build_py": BuildWithConfiguration})
