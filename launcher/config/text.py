"""Writes a configuration as YAML that OmegaConf reads back as the same values."""

from __future__ import annotations

import re
from dataclasses import asdict
from functools import cache
from typing import Any

from launcher.config.schema import Config


def to_yaml(config: Config) -> str:
    """``config`` as YAML, for :func:`launcher.config.from_yaml`."""
    import yaml

    text: str = yaml.dump(
        asdict(config), Dumper=_dumper(), default_flow_style=False, allow_unicode=True, sort_keys=False
    )
    return text


@cache
def _dumper() -> Any:
    """PyYAML's, in C where that was built; OmegaConf's way takes eight times as long."""
    import yaml

    class Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
        pass

    # OmegaConf takes more for a number than PyYAML does, `1e3` for example. A text that looks like one gets quotes.
    Dumper.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9._]+([eE][-+]?[0-9]+)?$"), list("-+0123456789.")
    )
    return Dumper
