"""Finds the files that lie beside the package in a checkout and inside it in an installed wheel."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]


def data_dir(name: str) -> Path:
    """The directory ``name`` of the wheel (``launcher/_data/NAME``) or else of the checkout (beside ``launcher``).

    Raises:
        FileNotFoundError: neither exists, so the installation is damaged.
    """
    # The wheel's copy comes first: beside an installed package lies all of site-packages, and any `conf` there
    # belongs to somebody else.
    candidates = (_PACKAGE / "_data" / name, _PACKAGE.parent / name)
    for path in candidates:
        if path.is_dir():
            return path
    raise FileNotFoundError(f"launcher's `{name}` directory is missing; looked in {', '.join(map(str, candidates))}")


def conf_dir() -> Path:
    """Directory of the shipped Hydra configuration."""
    return data_dir("conf")


def sbatch_templates_dir() -> Path:
    """Directory of the templates of SLURM job scripts."""
    return data_dir("sbatch_templates")
