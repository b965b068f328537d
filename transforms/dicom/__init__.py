"""DICOM folders: headers, the choice of the chest CT, its stack of slices, its pixels."""
