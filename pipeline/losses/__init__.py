"""The objective in two levels: a loss a sample, an aggregation over groups."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "aggregation": [
            "GroupCVaR",
            "GroupDRO",
            "GroupTreeCVaR",
            "HierarchicalCVaR",
            "KLGroupDRO",
            "MeanAggregation",
        ],
        "disentangled": ["DisentangledLoss"],
        "individual": ["IndividualFairnessLoss"],
        "sample_losses": [
            "CrossEntropy",
            "EqualizationLoss",
            "FocalLoss",
            "LDAMLoss",
            "LogitAdjustedCrossEntropy",
            "WeightedCrossEntropy",
        ],
        "site_head": ["SiteHeadLoss"],
        "two_level": ["FairLACVaRLoss", "TwoLevelLoss"],
    },
)
