"""New scans in, answers out: reading that survives a crash, prediction tables, DICOM objects."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "classifier": ["Classifier", "load_model"],
        "dicom_report": ["DicomWriter"],
        "members": ["MemberLoader", "checkpoint_paths", "common_settings", "model_runs", "require_checkpoints"],
        "labelled_writer": ["LabelledPredictionWriter"],
        "on_ray": ["run_on_ray"],
        "prediction_writer": ["AppendingPredictionWriter", "PredictionWriter", "prediction_writer_of"],
        "about_scans": ["AboutScans"],
        "runtimes": ["MemoryKeeper", "MirrorInferer", "inferer_of"],
        "scan_readers": ["ScanLoader"],
        "watch": ["run_inference", "watch_scans"],
    },
)
