"""What pyproject.toml cannot say: a wheel carries `config/` as `pmsplat/configuration/`, and the
weights that ship as `pmsplat/weights/`."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConfiguration(build_py):
    """Copies the YAML files and the weights into what is built; an editable install reads them
    where they are."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        files = [("configuration", file) for file in Path("config").rglob("*.yaml")]
        files += [("weights", file) for file in Path("pretrained").glob("pmsplat-*.safetensors")]
        for folder, file in files:
            place = Path(self.build_lib, "pmsplat", folder, *file.parts[1:])
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place)


setup(cmdclass={"build_py": BuildWithConfiguration})
