"""New scans for inference."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from monai.data import Dataset

from fairlung.transforms import find_scans
from fairlung.transforms.scan import new_record

from .intake_records import failure_reason, record_of


def scan_finder(all_series: bool = False) -> Callable[..., Sequence[Mapping[str, Any]]]:
    """:func:`~.find_scans` with ``all_series`` chosen, to be called with a root, or several."""
    return partial(find_scans, all_series=all_series)


class NewScanDataset(Dataset):
    """Unlabelled scans for inference: one that cannot be read becomes an item that says why, not an exception.

    Items have ``image``, ``scan``, ``reason`` (empty when all went well) and ``intake``, the record of how the scan was
    read: from the transform or, of a scan that is refused, the exception's attribute ``record``. A scan whose record
    has the status ``skipped`` is no failure; its reason says what it is.

    Args:
        data: ``{"image": path or source, "scan": name}`` a scan.
        transform: the bundle's preprocessing.
        image_shape: [1, D, H, W] of the volume that stands in for a failed scan.
    """

    def __init__(self, data: Sequence[Mapping[str, Any]], transform: Callable, image_shape: Sequence[int]) -> None:
        super().__init__(data=data, transform=transform)
        self.image_shape = tuple(image_shape)

    def with_data(self, data: Sequence[Mapping[str, Any]]) -> NewScanDataset:
        """The same for other scans."""
        return type(self)(data, self.transform, self.image_shape)

    def failed(self, index: int, reason: str, record: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The item of a scan that has no volume, with the intake record as far as it is known."""
        intake = new_record(status="refused", reason=reason) | dict(record or {})
        if intake["status"] == "skipped":
            reason = intake["reason"] or reason
        elif intake["status"] == "ok":  # it was read, and failed later
            intake |= {"status": "refused", "reason": reason}
        image = torch.zeros(self.image_shape)
        return {"image": image, "scan": self.data[index]["scan"], "reason": reason, "intake": intake}

    def _transform(self, index: int) -> Any:
        item = self.data[index]
        record: Mapping[str, Any] | None = None
        try:
            read = self.transform({"image": item["image"]})
            record = read.get("intake")
            image = torch.as_tensor(read["image"])
            if tuple(image.shape) != self.image_shape:
                raise ValueError(f"{item['image']}: preprocessing gave {tuple(image.shape)}, not {self.image_shape}")
        except Exception as error:
            return self.failed(index, failure_reason(error), record_of(error) or record)
        return {"image": image, "scan": item["scan"], "reason": "", "intake": record or new_record()}
