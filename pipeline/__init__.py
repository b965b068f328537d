"""fairlung.pipeline: cohorts, network, loss, metrics, tracking and the command line.

Nothing heavy is imported here; import the module you need, such as ``fairlung.pipeline.losses``.
"""

from __future__ import annotations

__version__ = "0.1.0"
