"""Names that several modules share: the benchmark's classes and sexes, and an unknown group.

These are defaults for building and synthesising the benchmark; training takes classes and groups from its config.
"""

CLASS_NAMES = ("adenocarcinoma", "squamous_cell", "covid19", "normal")
SEXES = ("male", "female")
TRAINING_SETTINGS = ("system", "alpha", "tau", "gradient", "seed", "fold")  # they say in a line what was trained
OBJECTIVE_SETTINGS = ("alpha", "tau", "gradient")  # an objective may be without them: null in its config
JOIN = " x "  # between the values of several columns in the name of a group
SITE = "site"  # column: where a scan was made
UNKNOWN = "unknown"  # what scans of unknown group are called
LEFT_OUT = "left_out"  # what a training calls scans that take no part in the aggregation over groups
UNKNOWN_GROUP = -1  # id of a group that is not known or takes no part

CHALLENGE_CLASSES = dict(zip(("a", "g", "covid", "normal"), CLASS_NAMES, strict=True))
CLASS_ALIASES = CHALLENGE_CLASSES | {"covid-19": "covid19", "covid_19": "covid19", "healthy": "normal"}
# how other data sets write sexes and splits
SEX_SPELLINGS = {"m": "male", "man": "male", "f": "female", "w": "female", "woman": "female"}
SPLIT_SPELLINGS = {"training": "train", "validation": "val", "valid": "val", "dev": "val", "testing": "test"}
