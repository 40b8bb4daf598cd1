"""The page: one run, or a sweep, in a browser; everything on it is read from the run directory."""

from __future__ import annotations
