"""Memory of training steps on full windows, beside what a study expects of them.

Each model is a process of its own: MiniLM on one thread, in the precision that the processor has
instructions for, three steps on windows of 384 tokens. Printed are the most memory in use, and the
estimate of qa_lib/training/study.py with embedded data, weights included. The estimate is of a
whole run, which also holds its features and its scoring, so it has to be the larger.
"""

import multiprocessing

import torch

from qa_lib.reports import plans
from qa_lib.settings.spec import Spec, has_bf16
from qa_lib.training import build, memory, study

LENGTH = 384  # tokens of a window
BATCH = 16  # windows
VARIANTS = {
    "V-DB": ("v-db", {}),
    "V-DB, 8 windows": ("v-db", {"batch_size": 8}),
    "V-DB, 32 windows": ("v-db", {"batch_size": 32}),
    "ExBERT (final)": ("exbert-tuned", {}),
    "(b) dense, equal weights": ("dense-parameters", {}),
}


def train_steps(spec: Spec) -> float:
    """Train three steps, and return the most memory of the process in GB."""
    torch.set_num_threads(1)
    model, _ = build.build_model(spec)
    losses = build.make_losses(spec, model, steps=3)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    model.train()
    memory.begin_anew()
    for step in range(3):
        ids = torch.randint(1000, 2000, (spec.batch_size, LENGTH))
        batch = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "token_type_ids": torch.zeros_like(ids),
            "start_positions": ids[:, 0] % LENGTH,
            "end_positions": ids[:, 0] % LENGTH,
        }
        with torch.autocast("cpu", torch.bfloat16, enabled=spec.precision == "bf16"):
            out = model(**batch)
        loss = build.add_losses(losses, model, batch, out, out.loss, step)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return memory.read_peak() / 1024


def main() -> None:
    """Print a line for each model."""
    changes = {"encoder": "minilm", "blocks": 6, "tuned_blocks": 4, "experts": 16}
    changes |= {"experiments": ["headline", "dense"], "start": None}
    p = plans.load_params("exbert", "quick", changes)
    specs = {spec.variant: spec for spec in plans.plan(p)}
    for name, (variant, update) in VARIANTS.items():
        size = {"batch_size": BATCH, "max_length": LENGTH, "start": None} | update
        size["precision"] = "bf16" if has_bf16() else "fp32"
        spec = specs[variant].model_copy(update=size)
        with multiprocessing.get_context("spawn").Pool(1) as process:
            measured = process.apply(train_steps, (spec,))
        expected = study.batch_memory(spec) + 16 * study.count_weights(spec) / 2**30
        print(f"{name}: {measured:.1f} GB, estimate of a run {expected:.1f}")


if __name__ == "__main__":
    main()
