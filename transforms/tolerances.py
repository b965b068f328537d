"""Every tolerance of the intake with its unit: how far a scan may be from the ideal and still get an answer."""

MIN_SLICES = 10  # fewer are refused (the setting min_slices)
FEW_SLICES = 32  # fewer are warned of: of 64 sampled ones each would stand in twice
MIN_EXTENT_MM = 150.0  # a chest shorter than this from end to end is warned of
MAX_PICTURES_BESIDE = 9  # pictures beside DICOM files or numbered slices taken for previews; of more it is unclear

SAME_POSITION_MM = 0.01  # slices closer than this along the normal lie at one position
SAME_DIRECTION = 1e-3  # components of direction cosines that are one orientation
UNIT_VECTORS = 1e-2  # by which direction cosines may miss length 1 and a right angle
SAME_PIXEL_SPACING = 1e-3  # relative
OBLIQUE_DEGREES = 5.0  # slices more inclined to the axial plane than this are warned of
MAX_OBLIQUE_DEGREES = 30.0  # and beyond this they are no axial slices
UNEVEN_STEP = 0.1  # share of the median step by which a step may miss a whole number of steps
GAP_STEPS = 1.5  # a step longer than this many median steps is a gap
MAX_MISSING = 0.05  # share of the slices that may be missing, or that an acquisition among several may lack
MAX_GAP_MM = 20.0  # anatomy that a single gap may leave out
MAX_STEP_RATIO = 1.5  # between the 90th and the 10th percentile of the steps
TILT_DEGREES = 0.5  # a gantry tilt (or shear of the stack) above this is warned of
MAX_TILT_DEGREES = 30.0
DRIFT_MM = 1.0  # slices whose corner leaves the straight line through the stack by more are warned of
MAX_DRIFT_MM = 20.0
MAX_FRAMES = 20_000  # of one file
MAX_REMOTE_BYTES = 16 << 30  # of a remote scan's files, which are fetched to a local folder while it is read
STRAY_SLICES = 0.1  # share of a series that other stacks in it (scouts, another matrix) may have beside the largest

MIN_SPACING_MM = 0.05  # a voxel edge outside of these is in other units than millimetres
MAX_SPACING_MM = 40.0
THICK_STEP_MM = 10.0  # slices further apart are warned of
FIELD_MM = (100.0, 1000.0)  # a slice less or more wide than these is warned of
TRAILING_BYTES = 16  # that may follow the voxels in a file; more, and its header does not describe them

PADDING_HU = -32768.0  # what stands in a slice for no pixel; the window makes it 0
PADDING_SPREAD_HU = 40.0  # standard deviation up to which values below the range are one level of padding
RANGE_HU = (-1300.0, 4000.0)  # beyond it are no tissue and no air
HU_OF_MORE_BITS = (-8192.0, 4000.0)  # what bits beyond BitsStored make is HU or padding within these, else an overlay
MAX_OUT_OF_RANGE = 0.02  # share of the voxels; more is warned of
MAX_FAR_OUT_OF_RANGE = 0.1  # and this is refused
AIR_BELOW_HU = -600.0  # lungs and the air around the patient
MIN_AIR = 0.01  # share of the voxels
TISSUE_HU = (-200.0, 300.0)
MIN_TISSUE = 0.05
MASKED_SHARE = 0.1  # of the voxels that may have exactly the value of the corners, where that is no air

LUNG_BELOW_HU = -400.0  # also of lungs that are partly dense
LUNG_SHARE = 0.05  # of the body's volume that air inside the body must have, on either side of its middle

COLOUR_LEVELS = 32  # by which the channels of a grey picture may differ (JPEG keeps colour coarsely)
COLOUR_SHARE = 0.01  # share of pixels that may differ more
MAX_ASPECT = 1.1  # of a slice's sides (mm where they are known); more is warned of, as slices become squares
MIN_CONTRAST = 4  # grey levels between the 1st and the 99th percentile of a scan
TWO_LEVELS = 0.97  # share of a scan's pixels that may have one of two levels, give or take LEVEL_SPREAD
LEVEL_SPREAD = 10
