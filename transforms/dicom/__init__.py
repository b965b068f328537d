"""DICOM folders: the headers of their files, the stack of each series, which series is the chest CT, its pixels."""
