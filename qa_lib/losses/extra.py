"""What a term that a run adds to its task's loss is asked for, and by whom.

A run's extra losses are made by training/build.py. The trainer adds their values to the task's
loss one after the other, tells each of them that an optimizer step is done, writes their state
into every checkpoint, and logs what they report. It knows none of them by name.
"""

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor


class ExtraLoss:
    """An extra loss without memory, which reports nothing. Others answer more of the methods."""

    # The reported values whose mean over the training stands among the run's scores.
    scored: tuple[str, ...] = ()
    # Whether the training loss in a run's history has the term too. Without it the training loss
    # can be compared with the validation loss, which never has it.
    in_train_loss = False

    def loss(self, model: Any, batch: dict, outputs: Any, step: int) -> Any:
        """Return the term for a batch, a scalar tensor with its weight.

        outputs: what the model has just returned for the batch; step: optimizer steps done before.
        """
        raise NotImplementedError

    def after_step(self, model: Any):
        """Take note of an optimizer step, after which the model has new weights."""

    def state_dict(self) -> dict[str, Any]:
        """Return all that a run needs to go on from here, as tensors by name."""
        return {}

    def load_state_dict(self, state: dict[str, Any]):
        """Take the state that `state_dict` returned when a checkpoint was written."""

    def read_log(self) -> dict[str, float]:
        """Return values to log, as means over the steps since this was last called."""
        return {}


class LoggingLoss(ExtraLoss):
    """An extra loss that keeps values of its batches, and reports their means."""

    def __init__(self):
        self.logged: dict[str, list[Tensor]] = defaultdict(list)  # name → a scalar of each batch

    def log(self, batch: dict, name: str, values: Tensor):
        """Keep the mean of a batch's values until the log is read.

        values: a scalar, or a value of each row. Those of a batch of one dataset are kept under the
        dataset's name too.
        """
        value = values.detach().mean()
        self.logged[name].append(value)
        if batch.get("dataset") is not None:
            self.logged[f"{name}_{batch['dataset']}"].append(value)

    def state_dict(self) -> dict[str, Any]:
        """Return what is not logged yet."""
        return {f"logged.{name}": torch.stack(values) for name, values in self.logged.items()}

    def load_state_dict(self, state: dict[str, Any]):
        """Take what was not logged yet when a checkpoint was written."""
        self.logged.clear()
        for key, values in state.items():
            part, _, name = key.partition(".")
            if part == "logged":
                self.logged[name] = list(values)

    def read_log(self) -> dict[str, float]:
        """Return the means of what was logged since the last call, and forget it."""
        means = {name: float(torch.stack(values).mean()) for name, values in self.logged.items()}
        self.logged.clear()
        return means
