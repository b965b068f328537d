"""What the network looked at in a new scan: a montage a scan, and the activation as NIfTI in the scan's own space.

Both are Grad-CAM of the predicted class (:mod:`.error_gallery` says what it is and is not). A map is the exact inverse
of what preprocessing did to the geometry (slices chosen, each resized, the middle cut out).
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ignite.engine import Engine, Events
from numpy.typing import NDArray
from torch import Tensor, nn

from fairlung.transforms.checks import check_whole

from ..common.files import ScanPaths, replacing
from ..common.volumes import slice_counts
from ..inference.answers import Answer, AnswerEvents
from ..networks.ensemble import members_of
from .grad_cam import class_activation, explained_copy, explained_layer
from .montage import montage_figure, save_montage
from .scan_map import map_to_scan, write_map


class OverlayWriter:
    """Explains each answered scan of an inference: ``<folder>/<scan>.png`` and ``<folder>/<scan>_map.nii.gz``.

    Of an ensemble, the members' activations are averaged, each as a share of its own maximum, and the mean again is
    taken as a share of its maximum; so are those of the mirrored volumes.

    Attach it after :class:`~.PredictionWriter`, whose answers it shows, and after what loads the checkpoint. A picture
    or map that cannot be made is a warning in the answer. Pictures and maps of an earlier run are removed, so
    that they are not mistaken for this run's. The networks' copies that are explained live until the epoch ends.

    Args:
        network: classifier of [N, 1, D, H, W], an :class:`~.Ensemble`, or a sequence of classifiers.
        image_size: rows and columns to which slices are resized; ``crop_size`` those of the central crop.
        target_layer: module whose output the overlay explains; None is :func:`~.explained_layer`.
        mirror: whether mirrored volumes (left and right exchanged) took part in the answer.
        named: whether a montage shows the scan's name; a picture that leaves the project may have to do without.

    A size that is not positive or no network is a ValueError; a network without a module ``target_layer`` is one when
    the handler is attached, as a config makes it for every network.
    """

    def __init__(
        self, folder: str | Path, network: nn.Module | Sequence[nn.Module], class_names: Sequence[str], image_size: int,
        crop_size: int, target_layer: str | None = None, maps: bool = True, mirror: bool = False, named: bool = True,
    ) -> None:  # fmt: skip
        for name, size in (("image_size", image_size), ("crop_size", crop_size)):
            check_whole(name, size, least=1)
        self.networks = members_of(network) if isinstance(network, nn.Module) else list(network)
        if not self.networks:
            raise ValueError("network must be at least one, got none")
        self.folder, self.class_names, self.target_layer = Path(folder), tuple(class_names), target_layer
        self.image_size, self.crop_size = image_size, crop_size
        self.maps, self.mirror, self.named = maps, mirror, named
        self._name = ScanPaths()
        self._explained: list[nn.Module] = []
        self._montages: dict[str, Path] = {}
        self._maps: dict[str, Path] = {}

    def attach(self, engine: Engine) -> None:
        for member in self.networks:
            explained_layer(member, self.target_layer)
        engine.add_event_handler(Events.EPOCH_STARTED, self._start)
        if not engine.has_registered_events(AnswerEvents.ANSWERED):
            raise RuntimeError("OverlayWriter must be attached after the PredictionWriter, whose answers it shows")
        engine.add_event_handler(AnswerEvents.ANSWERED, self._explain)
        engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: self._explained.clear())

    def montage_path(self, scan: str) -> Path | None:
        return self._montages.get(scan)

    def map_path(self, scan: str) -> Path | None:
        return self._maps.get(scan)

    def _start(self, engine: Engine) -> None:
        self._name = ScanPaths()
        self._montages.clear()
        self._maps.clear()

    def _explain(self, engine: Engine) -> None:
        for answer, image in zip(engine.state.answers, engine.state.batch["image"], strict=True):
            path = self.folder / self._name(answer.scan)
            montage, map_ = path.with_name(f"{path.name}.png"), path.with_name(f"{path.name}_map.nii.gz")
            try:
                montage.unlink(missing_ok=True)
                map_.unlink(missing_ok=True)
                if answer.status == "ok":
                    self._write(answer, image, montage, map_)
            except Exception as error:  # the answer must not be lost by its picture: memory, a full disk, odd input
                answer.lacks("map" if answer.scan in self._montages else "overlay", error)

    def _write(self, answer: Answer, image: Tensor, montage: Path, map_: Path) -> None:
        intake = answer.intake
        depth = slice_counts(image[None])[0]
        if depth != len(intake["indices"]):
            raise ValueError(f"{len(intake['indices'])} indices of a volume of {depth} slices")
        assert answer.prediction is not None
        activation = self._activation(image, self.class_names.index(answer.prediction), depth)
        title = answer.scan if self.named else "Chest CT"
        figure = montage_figure(image[0, :depth].cpu().numpy(), activation, answer, title)
        montage.parent.mkdir(parents=True, exist_ok=True)
        with replacing(montage) as part:
            save_montage(figure, part)
        self._montages[answer.scan] = montage
        if not self.maps:
            return
        if intake["shape"] is None:
            raise ValueError("the scan's shape is not known")
        volume = map_to_scan(activation, intake["indices"], intake["shape"], self.image_size, self.crop_size)
        description = f"Grad-CAM of {answer.prediction}, share of maximum; not for diagnosis"
        with replacing(map_) as part:
            write_map(part, volume, intake["affine"], description)
        self._maps[answer.scan] = map_

    def _activation(self, image: Tensor, class_index: int, depth: int) -> NDArray[np.float32]:
        """[depth, H, W] in [0, 1], without padding: the mean over the members, and over both ways round."""
        if not self._explained:  # not before the first scan: the weights are loaded when the run starts
            self._explained = [explained_copy(member, self.target_layer) for member in self.networks]
        activations = []
        for member in self._explained:
            activations.append(_share(class_activation(member, image, class_index, self.target_layer)[:depth]))
            if self.mirror:
                mirrored = class_activation(member, image.flip(-1), class_index, self.target_layer)
                activations.append(_share(mirrored[:depth, :, ::-1]))
        return _share(np.mean(activations, axis=0))


def _share(activation: NDArray[np.float32]) -> NDArray[np.float32]:
    """As a share of its maximum, which may have been in the padding."""
    peak = activation.max()
    return activation / peak if peak > 0 else activation
