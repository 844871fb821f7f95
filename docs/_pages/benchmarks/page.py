"""The page about the benchmark of the whole product, from its results file. It measures nothing."""

from __future__ import annotations

