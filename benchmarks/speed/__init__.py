"""Speed and memory, measured against the published code and against what the machine can do; see ../run.py."""
