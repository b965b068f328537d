"""A bundle as one archive, as MONAI's ``download`` and the model zoo have them."""

import json
import shutil
import zipfile
from collections.abc import Mapping
from hashlib import file_digest
from pathlib import Path
from typing import Any

from ..common.bundle import METADATA, BundleError, bundle_files, bundle_version
from ..common.files import replacing
from ..networks.checkpoint import INFERENCE_NETWORK, NETWORK, model_settings, require_checkpoint, write_weights

MODEL = "models/model.pt"
_DATE = (2022, 5, 30, 0, 0, 0)  # of all files, so that equal bundles give equal archives


def write_archive(root: Path, folder: Path, weights: Path | None = None, url: str | None = None) -> list[Path]:
    """Write ``<bundle>_v<version>.zip``, whose one folder is the bundle; returns what was written.

    With ``weights``, a checkpoint, the archive has them as models/model.pt, and metadata.json says their shapes and
    classes. With a ``url`` they are written beside it instead, to be put there: large_files.yml of the archive names
    it and their digest, and MONAI's ``download_large_files`` brings them.

    Raises:
        BundleError: the archive is there already, or inference.yaml does not run the network of the weights.
        CheckpointError: the weights cannot be used.
    """
    name = root.resolve().name
    path = folder / f"{name}_v{bundle_version(root)}.zip"
    model = folder / f"{path.stem}.pt"
    if url is not None and weights is None:
        raise BundleError("a URL is of weights: name them too, with --weights")
    if found := next((one for one in (path, model) if one.exists()), None):
        raise BundleError(f"{found} is there already; move it away, or name another folder")
    contents = {file.relative_to(root).as_posix(): file.read_bytes() for file in bundle_files(root)}
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if weights is not None:
            require_checkpoint(weights)
            settings = model_settings(weights, "")
            if settings[NETWORK] != INFERENCE_NETWORK:
                what = f"{weights} holds a {settings[NETWORK]}"
                raise BundleError(f"{what}; the bundle's inference.yaml runs {INFERENCE_NETWORK}")
            contents[METADATA] = _metadata_of(contents[METADATA], settings)
            write_weights(weights, model)
            if url is not None:
                contents["large_files.yml"] = _large_files(model, url)
        with replacing(path) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
            for file, content in sorted(contents.items()):
                archive.writestr(_entry(f"{name}/{file}"), content)
            if weights is not None and url is None:
                entry = _entry(f"{name}/{MODEL}")
                with model.open("rb") as source, archive.open(entry, "w", force_zip64=True) as target:
                    shutil.copyfileobj(source, target)
    finally:
        if url is None:
            model.unlink(missing_ok=True)
    return [path] if url is None else [path, model]


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, _DATE)
    entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
    return entry


def _large_files(model: Path, url: str) -> bytes:
    import yaml

    with model.open("rb") as opened:
        digest = file_digest(opened, "sha256").hexdigest()
    entry = {"path": MODEL, "url": url, "hash_val": digest, "hash_type": "sha256"}
    return yaml.safe_dump({"large_files": [entry]}, sort_keys=False).encode()


def _metadata_of(text: bytes, settings: Mapping[str, Any]) -> bytes:
    """A metadata.json whose shapes and classes are those that weights were trained under."""
    content = json.loads(text)
    classes, crop = settings["class_names"], settings["crop_size"]
    image = content["network_data_format"]["inputs"]["image"]
    answer = content["network_data_format"]["outputs"]["pred"]
    image["spatial_shape"] = [settings["num_slices"], crop, crop]
    answer |= {"num_channels": len(classes), "spatial_shape": [1, len(classes)]}
    answer["channel_def"] = {str(index): name for index, name in enumerate(classes)}
    content["image_classes"] = f"one channel: chest CT, window {settings['window']} HU scaled to [0, 1]"
    content["label_classes"] = f"one of {len(classes)} classes a scan"
    answers = "their softmax is the posterior under the class frequencies that the checkpoint says"
    content["pred_classes"] = f"{len(classes)} logits a scan; {answers}"
    return (json.dumps(content, indent=4, ensure_ascii=False) + "\n").encode()
