"""Finds templates of job scripts and fills them in."""

from __future__ import annotations

from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.common.errors import ConfigError
from launcher.common.paths import sbatch_templates_dir
from launcher.config.schema import SlurmClusterConfig
from launcher.submit.job_script import JobScript
from launcher.submit.resources import HETEROGENEOUS, is_heterogeneous

if TYPE_CHECKING:
    import jinja2

SUFFIX = ".sbatch.j2"


def template_names() -> list[str]:
    """The templates that come with the launcher."""
    return sorted(path.name.removesuffix(SUFFIX) for path in sbatch_templates_dir().glob(f"*{SUFFIX}"))


def template_path(cluster: SlurmClusterConfig) -> Path:
    """The template that a configuration chooses: a shipped one by its name, or a file of the user's own."""
    chosen = cluster.template
    if chosen is None:
        chosen = HETEROGENEOUS if is_heterogeneous(cluster) else "plain" if cluster.container is None else "container"
    return shipped(chosen) if chosen in template_names() else Path(chosen)


def shipped(name: str) -> Path:
    """A template that comes with the launcher."""
    return sbatch_templates_dir() / f"{name}{SUFFIX}"


def render(script: JobScript, template: Path) -> str:
    """The text of a job script.

    Args:
        template: a Jinja file; it may extend a shipped one by its file name.

    Raises:
        ConfigError: it cannot be read, is not well formed, or names a value that does not exist.
    """
    import jinja2

    values = {field.name: getattr(script, field.name) for field in fields(script)} | {"nodes": script.nodes}
    try:
        return _environment(template.absolute().parent).get_template(template.name).render(values)
    except jinja2.TemplateNotFound as error:
        raise _problem(template, f"there is no file {error.name}", f"the templates are {_names()}") from error
    except jinja2.TemplateSyntaxError as error:
        where = f"{Path(error.filename or template).name}, line {error.lineno}: {error.message}"
        raise _problem(template, where, "see the shipped templates for examples") from error
    except jinja2.UndefinedError as error:
        raise _problem(template, str(error.message), f"a template knows {', '.join(values)}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise _problem(template, str(error), "name a file that can be read") from error


@cache
def _environment(folder: Path) -> jinja2.Environment:
    """The same one for each folder: it keeps what it has compiled, until the file changes."""
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader([str(folder), str(sbatch_templates_dir())]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        # The output is a shell script.
        autoescape=False,
    )


def _names() -> str:
    return ", ".join(template_names())


def _problem(template: Path, what: str, hint: str) -> ConfigError:
    return ConfigError([f"`cluster.template` ({template}) cannot be filled in: {what}. HINT: {hint}."])
