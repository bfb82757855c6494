"""Bundles the renderer of the pages' splat viewer from npm.

    python scripts/build_splat_viewer.py

Needs node and npm. Installs the exact versions of scripts/splat_viewer/package-lock.json into a
temporary folder, bundles what scripts/splat_viewer/renderer.js names into one script without
imports, and writes into src/pmsplat/view/pages/: gsplat.min.js, gsplat.LICENSE.txt (that of the
package) and gsplat.json (versions and hashes, which a test compares). The same input gives the same
bytes.
"""

import base64
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "scripts" / "splat_viewer"
PAGES = ROOT / "src" / "pmsplat" / "view" / "pages"
FLAGS = (
    "--bundle",
    "--minify",
    "--format=iife",
    "--global-name=gsplat",
    "--target=es2022",
    "--charset=ascii",
    "--legal-comments=none",
    "--log-level=warning",
    # The package asks where it lies, to load files that it holds already.
    '--define:import.meta.url=""',
)
# What is changed in the bundle: before, after, and how often it is there.
CHANGES = (
    # The shader gets four times the covariance, but adds the 0.3 px² of 3DGS as if it were one.
    ("cov2d[0][0] += 0.3;", "cov2d[0][0] += 1.2;", 1),
    ("cov2d[1][1] += 0.3;", "cov2d[1][1] += 1.2;", 1),
    # A page that was opened as a file may start no worker that is a module.
    ('type:"module"', 'type:"classic"', 4),
    ("URL.revokeObjectURL(import.meta.url);", "URL.revokeObjectURL(self.location.href);", 2),
)
WORKERS = 2  # held as base64, each of which asks where it lies, as only modules may
MARK = "\0"  # nowhere else in a script


def run(*command: str | Path, cwd: Path) -> None:
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"build_splat_viewer: {command[0]} failed:\n{done.stdout}{done.stderr}")


def change(script: str) -> str:
    """The script with our changes, each in as many places as it is known to be."""
    for before, after, count in CHANGES:
        if script.count(before) != count:
            sys.exit(f"build_splat_viewer: {before} is there {script.count(before)} times")
        script = script.replace(before, after)
    changed = re.sub(r'(?<=")[A-Za-z0-9+/]{9999,}=*(?=")', change_worker, script)
    if changed.count(MARK) != WORKERS:
        sys.exit(f"build_splat_viewer: {changed.count(MARK)} workers, not {WORKERS}")
    return changed.replace(MARK, "")


def change_worker(found: re.Match[str]) -> str:
    """A string in base64; a worker as a classic script, with MARK in front."""
    code = base64.b64decode(found[0])
    if b"import.meta.url" not in code:
        return found[0]
    code = code.replace(b"import.meta.url", b'""')
    code = re.sub(rb"//# sourceMappingURL=\S+\n?", b"", code)
    return MARK + base64.b64encode(code).decode()


def main() -> None:
    if shutil.which("npm") is None:
        sys.exit("build_splat_viewer: there is no npm here; install node")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for path in SOURCE.iterdir():
            shutil.copy(path, folder)
        run("npm", "ci", "--no-audit", "--no-fund", cwd=folder)
        esbuild = folder / "node_modules" / ".bin" / "esbuild"
        run(esbuild, "renderer.js", *FLAGS, "--outfile=out.js", cwd=folder)
        script = change((folder / "out.js").read_text())
        license_text = (folder / "node_modules" / "gsplat" / "LICENSE").read_text()
    package = json.loads((SOURCE / "package.json").read_text())
    about = {
        "made by": "scripts/build_splat_viewer.py",
        **package["dependencies"],
        **package["devDependencies"],
        "changes": [f"{before} -> {after}" for before, after, _ in CHANGES],
        "sha256": {
            "gsplat.min.js": hashlib.sha256(script.encode()).hexdigest(),
            "gsplat.LICENSE.txt": hashlib.sha256(license_text.encode()).hexdigest(),
        },
    }
    (PAGES / "gsplat.min.js").write_text(script)
    (PAGES / "gsplat.LICENSE.txt").write_text(license_text)
    (PAGES / "gsplat.json").write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
