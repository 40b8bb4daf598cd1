"""A real git repository for a test, made in a temporary directory."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

IDENTITY = {
    "GIT_AUTHOR_NAME": "a",
    "GIT_AUTHOR_EMAIL": "a@example.org",
    "GIT_COMMITTER_NAME": "a",
    "GIT_COMMITTER_EMAIL": "a@example.org",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_SYSTEM": os.devnull,
}


class Repository:
    """One with a first commit of ``files``; a name that ends with ``!`` is executable."""

    def __init__(self, path: Path, files: dict[str, str]) -> None:
        self.path = path
        path.mkdir(parents=True)
        self.git("init", "--quiet", "--initial-branch", "main")
        self.write(files)
        self.commit("first")

    def write(self, files: dict[str, str]) -> None:
        """Writes files into the working tree."""
        for name, text in files.items():
            file = self.path / name.rstrip("!")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
            if name.endswith("!"):
                file.chmod(0o755)

    def commit(self, message: str) -> str:
        """Commits everything; returns the hash."""
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--message", message)
        return self.git("rev-parse", "HEAD").strip()

    def git(self, *arguments: str) -> str:
        """Output of one git command."""
        done = subprocess.run(
            ["git", "-c", "protocol.file.allow=always", *arguments],
            cwd=self.path,
            env=os.environ | IDENTITY,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout
