"""NIfTI, NRRD, MetaImage: one file (or header and voxels) that holds a volume and its geometry."""

import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .geometry import RAS_OF_LPS, Turn, inclination, turn_to_lps
from .scan import OpenScan, Refusal
from .tolerances import MAX_OBLIQUE_DEGREES, MAX_TILT_DEGREES, OBLIQUE_DEGREES, TILT_DEGREES
from .voxel_bytes import check_metaimage_header, check_nrrd_header, check_number, check_rest, check_voxel_bytes

NRRD_SPACES = ("right-anterior-superior", "left-anterior-superior", "left-posterior-superior")


def open_nifti(path: Path) -> OpenScan:
    """A NIfTI volume; slices along its last stored axis are read one by one.

    A compressed file is read to its end, because the checksum is there.

    Raises:
        Refusal: no single 3-D volume of numbers, or nothing says how it is oriented.
    """
    import nibabel

    image: Any = nibabel.load(path)
    header = image.header
    if image.get_data_dtype().names is not None or image.get_data_dtype().kind not in "iuf":
        raise Refusal(f"must hold numbers, got voxels of {image.get_data_dtype()}")
    shape = image.shape
    extra = shape[3:]
    if len(shape) < 3 or any(size != 1 for size in extra):
        raise Refusal(f"must be one 3-D volume, got shape {tuple(shape)}")
    if min(shape) < 1:
        raise Refusal(f"holds no voxels: shape {tuple(shape)}")
    codes = [int(header[name]) for name in ("sform_code", "qform_code") if name in header]
    if codes and not any(codes):
        raise Refusal("neither sform nor qform says how it is oriented")
    if codes and all(codes):
        _check_sides(header)
    turn = turn_to_lps(np.asarray(image.affine, dtype=float), shape)
    tail = (0,) * len(extra)
    nbytes = image.dataobj.offset + int(np.prod(shape)) * image.get_data_dtype().itemsize
    packed = path.name.lower().endswith(".gz")
    if not packed:
        check_number(path.stat().st_size, nbytes)

    def read(indices: Sequence[int]) -> np.ndarray:
        if not packed:
            return planes(image.dataobj, indices)
        with gzip.open(path) as stream:
            values = planes(type(image).from_stream(stream).dataobj, indices)
            check_rest(stream, nbytes)
        return values

    def planes(stored: Any, indices: Sequence[int]) -> np.ndarray:
        if turn.slice_axis != 2:
            return _turned(np.asarray(stored).reshape(shape[:3]), turn, indices)
        forward = sorted(indices, key=turn.stored_index)  # through a compressed file
        found = {z: np.asarray(stored[(slice(None), slice(None), turn.stored_index(z), *tail)]) for z in forward}
        return _upright(np.stack([found[z] for z in indices], axis=2), turn)

    told, tilt = _inclined(turn)
    return OpenScan(
        "nifti", turn.shape, turn.affine, read, turn.orientation, "nibabel", warnings=told, tilt_degrees=tilt
    )


def _check_sides(header: Any) -> None:
    """Refusal where sform and qform are both stated and differ in the patient's sides: readers take one or the other.

    A registration may have turned one of them by some degrees; that changes no side.
    """
    from nibabel.orientations import aff2axcodes
    from nibabel.spatialimages import HeaderDataError

    try:
        sides = ["".join(map(str, aff2axcodes(form()))) for form in (header.get_sform, header.get_qform)]
    except (HeaderDataError, ValueError):  # a quaternion that is none: nobody can read the qform
        return
    if sides[0] != sides[1]:
        raise Refusal(f"its sform says that its axes grow to {sides[0]}, its qform to {sides[1]}: which side is which?")


def open_itk(path: Path) -> OpenScan:
    """An NRRD or MetaImage volume; its voxels are read whole, in the type in which they are stored.

    Raises:
        Refusal: no 3-D volume of scalars, or nothing says how it is oriented.
    """
    import SimpleITK as sitk

    metaimage = path.name.lower().endswith((".mha", ".mhd"))
    fields = (check_metaimage_header if metaimage else check_nrrd_header)(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    if reader.GetDimension() != 3 or reader.GetNumberOfComponents() != 1:
        raise Refusal(
            f"must be one 3-D volume of scalars, got {reader.GetDimension()} dimensions with "
            f"{reader.GetNumberOfComponents()} components"
        )
    if not metaimage:
        keys = reader.GetMetaDataKeys()
        if "NRRD_space" not in keys or reader.GetMetaData("NRRD_space") not in NRRD_SPACES:  # ITK takes it for LPS then
            raise Refusal(f"its space is none of {', '.join(NRRD_SPACES)}: nothing says how it is oriented")
    lps = np.eye(4)
    lps[:3, :3] = np.array(reader.GetDirection()).reshape(3, 3) * np.array(reader.GetSpacing())
    lps[:3, 3] = reader.GetOrigin()
    turn = turn_to_lps(RAS_OF_LPS @ lps, reader.GetSize())

    def read(indices: Sequence[int]) -> np.ndarray:
        one = sitk.Image([1, 1, 1], reader.GetPixelID())
        # first: on a header that describes more than there is ITK can end the process
        check_voxel_bytes(path, one.GetSizeOfPixelComponent() * int(np.prod(reader.GetSize())))
        image = reader.Execute()  # must outlive the view of its voxels
        return _turned(sitk.GetArrayViewFromImage(image).transpose(2, 1, 0), turn, indices)

    told, tilt = _inclined(turn)
    told += _other_letters(fields.get("anatomicalorientation", ""), turn.orientation) if metaimage else []
    return OpenScan(
        "itk", turn.shape, turn.affine, read, turn.orientation, "SimpleITK", warnings=told, tilt_degrees=tilt
    )


def _other_letters(stated: str, grows_to: str) -> list[str]:
    """A warning where a MetaImage's AnatomicalOrientation contradicts its TransformMatrix, by which every reader goes.

    A refusal would be too much: programs write RAI whatever the matrix is. ITK's letters say where an axis comes from,
    those of other programs where it goes to; either agrees.
    """
    comes_from = grows_to.translate(str.maketrans("RLAPIS", "LRPASI"))
    if sorted(stated.upper().translate(str.maketrans("LPS", "RAI"))) != list("AIR"):  # such as ???: states nothing
        return []
    if stated.upper() in (comes_from, grows_to):
        return []
    return [
        f"other_orientation: its AnatomicalOrientation is {stated.upper()}, its TransformMatrix says {comes_from}; the "
        "matrix is taken"
    ]


def _inclined(turn: Turn) -> tuple[list[str], float]:
    """Warnings, as DICOM series have them, and the shear in degrees.

    Raises:
        Refusal: the planes that become slices are far from axial, or sheared too much.
    """
    oblique, shear = inclination(turn.affine)
    if oblique > MAX_OBLIQUE_DEGREES:
        raise Refusal(f"no axis of its voxels is near the patient's ({oblique:.0f} degrees from axial)")
    if shear > MAX_TILT_DEGREES:
        raise Refusal(f"gantry tilt of {shear:.1f} degrees")
    told = [f"oblique: slices are {oblique:.0f} degrees from axial"] if oblique > OBLIQUE_DEGREES else []
    if shear > TILT_DEGREES:
        told.append(f"gantry_tilt: {shear:.1f} degrees; the stack is sheared, not resampled")
    return told, round(shear, 2)


def _turned(stored: np.ndarray, turn: Turn, indices: Sequence[int]) -> np.ndarray:
    """[n, H, W] out of a whole volume with stored axes."""
    return np.ascontiguousarray(turn.slices(stored)[list(indices)], dtype=np.float32)


def _upright(planes: np.ndarray, turn: Turn) -> np.ndarray:
    """[n, H, W] out of planes stacked along the last axis in the order of z."""
    ornt = turn.ornt.copy()
    ornt[2] = 2, 1
    return np.ascontiguousarray(turn._replace(ornt=ornt).slices(planes), dtype=np.float32)
