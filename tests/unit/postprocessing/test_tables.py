"""No file that is read is written over."""

from __future__ import annotations

from pathlib import Path

from noisy_predictions import refused

from fairlung.pipeline.postprocessing.tables import refuse_overwriting


def test_a_hard_link_to_an_input_is_no_other_file(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("x")
    two.hardlink_to(one)
    refused("two is read as well", lambda: refuse_overwriting([one], [two]))
    refuse_overwriting([one], [tmp_path / "three"])
