"""What the README and the overview say of Bring in the ExBERT; its page has params/findings/."""

import pandas as pd

from qa_lib.page.findings import Central, say_lead, select_central

CENTRAL = (
    Central("ExBERT (final)", "V-DB, the plain model", "headline"),
    Central("ExBERT (final)", "its own blocks alone", "headline", "control"),
)


def result(claims: pd.DataFrame) -> tuple[str, int]:
    """Return the central comparisons in words, and their seeds; empty where there are none."""
    whole, layer = CENTRAL
    settings = select_central(whole, claims, "printed")
    if settings is None:
        return "", 0
    sentences = []
    subject, plain_model = "ExBERT (final)", "V-DB, the plain span model"
    own_blocks = "its own encoder blocks without the expert layer"
    for arm, start in (("tuned", "With equal tuning"), ("printed", "At the report's settings")):
        lead = select_central(whole, claims, arm)
        if lead is None:
            continue
        sentence = f"{start} {subject} is {say_lead(lead)} {plain_model}"
        subject, plain_model = "it", "V-DB"  # as the next sentence calls them
        if arm == "printed":
            sentence += f" (printed: {lead['printed']} %)"
        lead = select_central(layer, claims, arm)
        if lead is not None:
            sentence += f", and {say_lead(lead)} {own_blocks}"
            own_blocks = "these blocks"
        sentences.append(f"{sentence}.")
    return " ".join(sentences), settings["n"]
