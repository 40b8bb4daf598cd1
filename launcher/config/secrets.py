"""What a secret is: by the name of its variable, by its value in this environment, or by the name of its file."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase, translate

from launcher.config.schema import Config

PATTERNS = ("*_TOKEN", "*_KEY", "*SECRET*", "*PASSWORD*")
"""Names of variables that hold secrets; ``secrets`` in the configuration adds further ones."""

FILES = (".env", ".env.*", "*.pem", ".netrc", "id_rsa", "id_ed25519", "*.key")
"""Names of files that hold secrets. They are not copied anywhere."""

# Matched against each file of a repository.
_FILES = re.compile("|".join(map(translate, FILES)))

NO_SECRETS = (".env.example", ".env.sample", ".env.template", ".env.dist")

SHORTEST_VALUE = 8
"""Shorter values, such as ``1`` or ``true``, are not looked for: they are everywhere."""


def is_secret(name: str, further: Sequence[str] = ()) -> bool:
    """Whether a variable of this name holds a secret.

    Args:
        further: names, or patterns, beside :data:`PATTERNS`.
    """
    return any(fnmatchcase(name.upper(), pattern.upper()) for pattern in (*PATTERNS, *further))


def is_secret_file(name: str) -> bool:
    """Whether a file of this name, without directories, is one of secrets."""
    return name not in NO_SECRETS and _FILES.fullmatch(name) is not None


def secret_values(further: Sequence[str] = (), environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Secrets of this environment that are long enough to search for: value by name."""
    return {name: value for name, value in environ.items() if is_secret(name, further) and len(value) >= SHORTEST_VALUE}


def unset_secrets(config: Config, environ: Mapping[str, str] = os.environ) -> list[str]:
    """Problems of ``secrets`` that show only where a run is submitted: names without a value there."""
    return [
        f"`secrets` ({name}) is not set in this environment, so no process of the run would have it."
        f" HINT: `export {name}=...` before you submit, or leave it out of `secrets`."
        for name in config.secrets
        if name not in environ and not set("*?[") & set(name)
    ]
