"""Systems judged on the same scans: paired resampling, tests, verdicts."""
