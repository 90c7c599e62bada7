"""The models of the reports: their names for readers, and their colours."""

MODELS = {  # variant: name, its one colour everywhere (after Okabe and Ito, dark enough on white), in the order of every figure
    "v-db": ("V-DB", "#0072b2"),
    "exbert": ("ExBERT", "#b87a00"),
    "exbert-tuned": ("ExBERT, tuned", "#d55e00"),
    "plain-tuned": ("(a) without ST-MoE block", "#009e73"),
    "dense-compute": ("(b) dense, equal compute", "#b5578c"),
    "dense-parameters": ("(b) dense, equal weights", "#6a5acd"),
    "baseline": ("Baseline", "#0072b2"),
    "baseline-4": ("4 epochs", "#4a4a4a"),
    "baseline-5": ("5 epochs", "#8a8a8a"),
    "few-shot": ("Baseline, few-shot", "#6a5acd"),
    "few-shot-augmented": ("Baseline, few-shot, altered copies", "#8878c8"),
    "moe-outside": ("MoE, out-of-domain experts too", "#9a4a1a"),
    "moe-clusters": ("MoE, experts by clusters", "#a8642c"),
    "outside": ("Out-of-domain expert", "#94762a"),
    "expert": ("Expert", "#b87a00"),
    "moe": ("MoE", "#d55e00"),
    "moe-probabilities": ("MoE, probabilities", "#b8722c"),
    "reinit": ("Reinit", "#009e73"),
    "reload": ("Reload", "#3c8c6a"),
    "moe-reinit": ("MoE + Reinit", "#b5578c"),
    "uniform-weights": ("Equal weights", "#7a6a00"),
    "best-single": ("Best expert on validation", "#8c5a00"),
    "told-dataset": ("Told the dataset", "#a03c00"),
    "own-expert": ("Own expert", "#5a7a00"),
    "other-experts": ("Other experts", "#80802c"),
    "oracle": ("Oracle", "#222222"),
}


def model_of(variant: str) -> str:
    """The model behind a variant: v-db-full, v-db-curve … are V-DB on other rows or epochs."""
    return variant if variant in MODELS else model_of(variant.rsplit("-", 1)[0])
