"""What README.md says of Sesame Street Ensemble: its central comparisons, and two sentences."""

import pandas as pd

from qa_lib.page.findings import Central, say_lead, select_central

CENTRAL = (
    Central("mixture of experts", "one model (dev)", "moe-dev", is_behind=True),
    Central("mixture of experts", "one model (test)", "moe-test", is_behind=True),
    Central("four blocks started anew", "one model (dev)", "reinit-dev", is_behind=True),
)


def result(claims: pd.DataFrame) -> tuple[str, int]:
    """Return the central comparisons in words, and their seeds; empty where there are none."""
    mixture, _, anew = CENTRAL
    dev = select_central(mixture, claims, "printed")
    if dev is None:
        return "", 0
    tuned = select_central(mixture, claims, "tuned")
    reinit = select_central(anew, claims, "printed")
    seeds = dev["n"]
    scored = ", scored as in the report," if dev["comparison"] == "starter" else ""
    text = (
        f"At the report's settings{scored} the mixture of experts is {say_lead(dev)} one model of "
        f"all the data on new domains (printed: {dev['printed']} behind)"
    )
    if tuned is None:
        text += "; equal tuning has not been run."
    else:
        text = f"With equal tuning the mixture is {say_lead(tuned)} one model. {text}."
    if reinit is not None:
        seeds = min(seeds, reinit["n"])
        text += (
            f" That model with four blocks started anew is {say_lead(reinit)} itself untouched "
            f"(printed: {reinit['printed']} behind)."
        )
    return text, seeds
