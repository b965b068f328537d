"""File names for scans: safe on every system, one a scan, never outside the folder."""

import hashlib
import re
import unicodedata

FORBIDDEN = re.compile(r'[\x00-\x1f\x7f-\x9f\ud800-\udfff<>:"|?*\\]')  # on some system; half pairs: in no Unicode name
DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # no file names on Windows
OURS = (".png", ".nii.gz")  # a folder of such a name could stand where a file of ours must be
NAME_BYTES = 160  # of one part of a path; file systems take 255, and suffixes are added


class ScanPaths:
    """A relative path for each scan's files: like the scan's name, inside the folder, and no other scan's.

    A name that every file system takes stays as it is. Any other is mended and marked by a digest of the name, as is a
    name that differs from an earlier one in case alone.
    """

    def __init__(self) -> None:
        self._paths: dict[str, str] = {}
        self._taken: set[str] = set()

    def __call__(self, scan: str) -> str:
        """Path without suffix, parts separated by ``/``.

        Example:
            >>> paths = ScanPaths()
            >>> paths("a/b/0001"), paths("../x.nii.gz"), paths("study#2")
            ('a/b/0001', '_/x.nii.gz-77eff4a9', 'study#2')
        """
        if scan not in self._paths:
            *folders, name = map(_safe_part, scan.split("/"))
            path = "/".join([*(f"{part}_" if part.lower().endswith(OURS) else part for part in folders), name])
            digest = hashlib.sha256(scan.encode("utf-8", "surrogatepass")).hexdigest()
            if path != scan or _key(path) in self._taken:
                path += f"-{digest[:8]}"
            while _key(path) in self._taken:
                path += "-"
            self._taken.add(_key(path))
            self._paths[scan] = path
        return self._paths[scan]


def _key(path: str) -> str:
    """The same for two paths that some file system takes for one."""
    return unicodedata.normalize("NFKC", path).casefold()


def _safe_part(part: str) -> str:
    safe = FORBIDDEN.sub("_", part).strip(" .") or "_"
    safe = f"_{safe}" if DEVICES.fullmatch(safe) else safe
    return safe.encode()[:NAME_BYTES].decode(errors="ignore").rstrip(" .")
