"""Names that several modules share: the benchmark's classes and sexes, and the id of an unknown group.

These are defaults for building and synthesising the benchmark; training takes classes and groups from its config.
"""

from __future__ import annotations

CLASS_NAMES = ("adenocarcinoma", "squamous_cell", "covid19", "normal")
SEXES = ("male", "female")
# settings that say in a line what was trained
TRAINING_SETTINGS = ("system", "alpha", "tau", "gradient", "seed", "fold")
UNKNOWN_GROUP = -1  # of a scan whose group is not known
