"""What a cohort says of its scans beside label and groups, for a table of predictions: patient and site."""

import logging
from pathlib import Path

from ..common.distributed import is_primary
from ..common.names import SITE
from ..common.text import spelling
from ..data.cohort import Cohort
from ..data.groups import group_values, joined
from ..data.pseudonyms import Digests, Pseudonyms
from ..evaluation.patient_column import PATIENT

logger = logging.getLogger(__name__)


class AboutScans(Digests):
    """What a cohort says of its scans beside label and groups, as columns of a table: the patient's digest, the site.

    A patient of several groups, as by age, is a patient of each, with a warning: an audit needs every one in one group.

    Args:
        cohort: with a column ``patient``, ``site``, both or neither; a group column is none of these.
        key_file, output_dir: of :class:`Digests`.
        pseudonyms: what scans are called.
    """

    def __init__(
        self, cohort: Cohort, key_file: str | Path | None = None, output_dir: str | Path = ".",
        pseudonyms: Pseudonyms | None = None,
    ) -> None:  # fmt: skip
        super().__init__(key_file, output_dir, "patient_key")
        table = cohort.table
        self.columns = [name for name in (PATIENT, SITE) if name in table and name not in cohort.group_by]
        scans = table["scan"] if pseudonyms is None else table["scan"].map(pseudonyms.scan)
        self._site = dict(zip(scans, table.get(SITE, ()), strict=False))
        self._patient: dict[str, tuple[str, ...]] = {}
        if PATIENT in self.columns:
            ids, group = table[PATIENT].map(spelling), joined(group_values(table, cohort.group_by))
            groups = group[(ids != "") & (group != "")].groupby(ids).nunique()
            several = groups.index[groups > 1]
            if len(several) and is_primary():
                logger.warning(
                    "patients of several groups, each of which counts as a patient of each: %d", len(several)
                )
            rows = zip(scans, ids, group.where(ids.isin(several), ""), strict=True)
            self._patient = {scan: (one, *filter(None, [of])) if one else () for scan, one, of in rows}

    def knows_patient(self, scan: str) -> bool:
        """Whether the cohort says whose a scan is."""
        return bool(self._patient.get(scan))

    def row(self, scan: str) -> list[str]:
        """The cells of a scan; a patient's is empty where none is given."""
        patient = self._patient.get(scan)
        cells = {PATIENT: self.digest(PATIENT, *patient) if patient else "", SITE: self._site.get(scan, "")}
        return [cells[name] for name in self.columns]
