"""Pixels of DICOM slices as HU: decoded by pydicom's decoders, by SimpleITK where pydicom has none."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ..scan import Refusal
from ..tolerances import AIR_BELOW_HU, HU_OF_MORE_BITS, PADDING_HU, RANGE_HU, TRAILING_BYTES
from .headers import SliceHeader, quiet_pydicom

SECOND_DECODER = "SimpleITK"
JPEG_FAMILY = "1.2.840.10008.1.2.4."  # transfer syntaxes of JPEG, JPEG-LS and JPEG 2000
END_OF_IMAGE = b"\xff\xd9"
PIXEL_LAYOUT = ("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation")
OVERLAYS = range(0x6000, 0x6020, 2)  # groups whose element 0102 says in which bit of the pixels an overlay is
HU_TYPES = ("", "HU", "US")  # of RescaleType; US = unspecified, which older scanners write of HU
SPELLED_OUT = ("HOUNSFIELD", "HOUNDSFIELD")  # Houndsfield Unit, say reformats of GE


def check_rescale(slices: Sequence[SliceHeader]) -> list[str]:
    """Whether the slices say how their values become HU.

    Returns:
        warnings.

    Raises:
        Refusal: a slice does not say, or says that they become something else.
    """
    missing = sum(header.rescale is None for header in slices)
    if missing:
        table = " (a lookup table is not read)" if any(header.has_lookup_table for header in slices) else ""
        raise Refusal(f"{missing} of {len(slices)} slices have no RescaleSlope and RescaleIntercept{table}: no HU")
    if not all(header.rescale_type in HU_TYPES or header.rescale_type.startswith(SPELLED_OUT) for header in slices):
        raise Refusal("RescaleType is not HU")
    told = []
    if len({header.rescale for header in slices}) > 1:
        told.append("rescale_differs: slices differ in slope or intercept; each is read with its own")
    if any(map(_pads_tissue, slices)):
        told.append("padding: PixelPaddingValue is a value that tissue has, and is taken for tissue")
    if any(header.lossy for header in slices):
        told.append("lossy: pixels were compressed with loss")
    return told


def read_hu(slices: Sequence[SliceHeader]) -> Iterator[tuple[np.ndarray, str]]:
    """HU of each slice as stored, [rows, columns] float32, padding :data:`PADDING_HU`; and who decoded it.

    Raises:
        Refusal: the pixels cannot be decoded, or are not those that the header describes.
    """
    import pydicom

    path, dataset = None, None
    for header in slices:
        try:
            with quiet_pydicom():
                if header.path != path:  # frames of one file follow each other: read it once
                    path, dataset = header.path, pydicom.dcmread(header.path, force=True)
                    _check_layout(dataset)
                stored, by = _stored(dataset, header)
        except Refusal as error:
            raise Refusal(f"{header.path.name}: {error}") from error
        except Exception as error:  # decoders raise many kinds; no value of the header may reach a message or traceback
            raise Refusal(f"{header.path.name}: pixels cannot be decoded ({_said(error)})") from None
        yield _hu(header, stored), by


def _stored(dataset: Any, header: SliceHeader) -> tuple[np.ndarray, str]:
    from pydicom.pixels import pixel_array
    from pydicom.uid import JPEG2000TransferSyntaxes

    frame = header.frame or 0
    syntax = _transfer_syntax(dataset)
    # of a stream that ends early CharLS makes many seconds of work
    if syntax.startswith(JPEG_FAMILY) and END_OF_IMAGE not in _codestream(dataset, frame)[-TRAILING_BYTES:]:
        raise Refusal("its compressed pixels end early")
    if _is_decoded_by_pydicom(syntax):
        values = pixel_array(dataset, index=frame, correct_unused_bits=False)
        # a JPEG 2000 codestream says itself how many bits it has
        return values if syntax in JPEG2000TransferSyntaxes else _of_stored_bits(values, dataset, header), "pydicom"
    return _decoded_by_itk(dataset, frame), SECOND_DECODER


def _of_stored_bits(values: np.ndarray, dataset: Any, header: SliceHeader) -> np.ndarray:
    """Values without what stands in the bits beyond BitsStored, such as an overlay.

    Raises:
        Refusal: they are no overlay: values are larger than BitsStored says, and would be cut.
    """
    spare = dataset.BitsAllocated - dataset.BitsStored
    if spare <= 0:
        return values
    stored = (values << spare) >> spare
    beyond = values[stored != values]
    without_sign = values.min() >= 0 and values.max() < 1 << dataset.BitsStored  # not extended to the bits beyond
    if beyond.size and not without_sign and not any((group, 0x0102) in dataset for group in OVERLAYS):
        assert header.rescale is not None
        hu = beyond * header.rescale[0] + header.rescale[1]
        if ((hu > HU_OF_MORE_BITS[0]) & (hu < HU_OF_MORE_BITS[1])).any():
            raise Refusal(f"pixels have values beyond their {dataset.BitsStored} BitsStored")
    return stored


def _codestream(dataset: Any, frame: int) -> bytes:
    from pydicom.encaps import get_frame

    return get_frame(dataset.PixelData, frame, number_of_frames=int(dataset.get("NumberOfFrames") or 1))


def _hu(header: SliceHeader, stored: np.ndarray) -> np.ndarray:
    assert header.rescale is not None
    slope, intercept = header.rescale
    hu = stored.astype(np.float32) * np.float32(slope) + np.float32(intercept)
    if hu.shape != (header.rows, header.columns):
        raise Refusal(
            f"{header.path.name}: pixels decode to {hu.shape}, the header says {(header.rows, header.columns)}"
        )
    if header.padding is not None:
        # within the range it is air, or somebody's tissue has its value: what the pixel says then holds
        low, high = header.padding
        hu[(stored >= low) & (stored <= high) & ((hu < RANGE_HU[0]) | (hu > RANGE_HU[1]))] = PADDING_HU
    return hu


def _pads_tissue(header: SliceHeader) -> bool:
    if header.padding is None or header.rescale is None:
        return False
    slope, intercept = header.rescale
    low, high = sorted(value * slope + intercept for value in header.padding)
    return high > AIR_BELOW_HU and low < RANGE_HU[1]


def _check_layout(dataset: Any) -> None:
    """Whether the pixels can be those that the header describes; decoders take what they need of more.

    Raises:
        Refusal: they cannot.
    """
    from pydicom.uid import UID

    stored, high = dataset.get("BitsStored"), dataset.get("HighBit")
    if stored is not None and high is not None and high != stored - 1:  # PS3.5 8.1.1 allows nothing else
        raise Refusal(f"pixels are described by a HighBit of {high} with {stored} BitsStored")
    if UID(_transfer_syntax(dataset)).is_encapsulated:
        return
    frames = int(dataset.get("NumberOfFrames") or 1)
    described = dataset.Rows * dataset.Columns * dataset.SamplesPerPixel * frames * dataset.BitsAllocated // 8
    if len(dataset.PixelData) - described > TRAILING_BYTES:
        raise Refusal(f"has {len(dataset.PixelData)} bytes of pixels, the header describes {described}")


def _is_decoded_by_pydicom(syntax: str) -> bool:
    from pydicom.pixels import get_decoder
    from pydicom.uid import JPEGExtended12Bit

    try:
        # of this one pydicom's decoders say yes and then take 8 of its 12 bits only
        return bool(get_decoder(syntax).is_available) and syntax != JPEGExtended12Bit
    except NotImplementedError:
        return False


def _transfer_syntax(dataset: Any) -> str:
    """What the file says; of a file without meta information, how pydicom found its elements to be written."""
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit, little = dataset.original_encoding
        plain = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = plain
    return str(dataset.file_meta.TransferSyntaxUID)


def _decoded_by_itk(dataset: Any, frame: int) -> np.ndarray:
    """Stored values of a frame: [rows, columns].

    ITK inverts MONOCHROME1 and applies the rescale of the first frame to all, so it is given a file without either.
    """
    import SimpleITK as sitk
    from pydicom import Dataset
    from pydicom.dataset import FileMetaDataset
    from pydicom.encaps import encapsulate
    from pydicom.uid import SecondaryCaptureImageStorage, generate_uid

    bare = Dataset()
    for name in PIXEL_LAYOUT:
        setattr(bare, name, dataset[name].value)
    bare.SOPClassUID, bare.SOPInstanceUID = SecondaryCaptureImageStorage, generate_uid()
    bare.PhotometricInterpretation, bare.SamplesPerPixel = "MONOCHROME2", 1
    bare.PixelData = encapsulate([_codestream(dataset, frame)])
    bare["PixelData"].VR = "OB"
    bare.file_meta = FileMetaDataset()
    bare.file_meta.TransferSyntaxUID = dataset.file_meta.TransferSyntaxUID
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    with TemporaryDirectory() as folder:
        file = Path(folder) / "frame.dcm"
        bare.save_as(file, enforce_file_format=True)
        reader.SetFileName(str(file))
        return sitk.GetArrayFromImage(reader.Execute()).reshape(bare.Rows, bare.Columns)


def _said(error: Exception) -> str:
    name = type(error).__name__
    text = str(error).strip().splitlines()
    missing = text and "missing dependencies" in text[-1]
    return f"{name}: no decoder for its transfer syntax" if missing else name


def same_pixels(one: SliceHeader, other: SliceHeader) -> bool:
    """Whether two files hold the same stored pixels."""
    return _pixel_digest(one) == _pixel_digest(other)


def _pixel_digest(header: SliceHeader) -> tuple[Any, ...]:
    import pydicom

    try:
        with quiet_pydicom():
            dataset = pydicom.dcmread(header.path, force=True)
            if header.frame is not None:
                return ("frame", str(header.path), header.frame)
            return header.rescale, hashlib.sha256(dataset.get("PixelData") or b"").digest()
    except Exception as error:
        raise Refusal(f"{header.path.name}: pixels cannot be read ({type(error).__name__})") from None
