"""Features: the windows of rows, tokenised and labelled by the task, cached by content."""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from qa_lib.settings.files import read_seal, write_folder
from qa_lib.settings.spec import canonical
from qa_lib.store import code_hashes
from qa_lib.tasks import MODULES, span

if TYPE_CHECKING:
    from datasets import Dataset


def load_windows(
    rows: list[dict], tokenizer, max_length: int, stride: int, cache: Path, task=span
) -> "Dataset":
    """Return the windows of `rows`, memory-mapped from the folder `cache`; made at first use.

    task: that of the rows. Columns, for a window of T tokens:
    input_ids        (T,)
    type_ids         (T,), 0 for the first text, 1 for the second
    row              index into `rows`
    and the labels and other columns of the task. Those of spans are
    offsets          (2T,), start and end of each context token in characters, zeros elsewhere
    start_positions  first token of the answer, 0 where the window does not hold it whole
    end_positions    last token, likewise
    """
    from datasets import Dataset, disable_progress_bars, load_from_disk

    disable_progress_bars()
    folder = cache / cache_key(rows, tokenizer, max_length, stride, task)
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):  # another worker that needs the same windows waits
        if read_seal(folder) is None:
            if folder.exists():
                print(f"cached features {folder.name} are damaged; made anew", flush=True)
            windows = Dataset.from_dict(task.tokenise_rows(rows, tokenizer, max_length, stride))
            write_folder(folder, windows.save_to_disk)
        return load_from_disk(folder)


def cache_key(rows: list[dict], tokenizer, max_length: int, stride: int, task=span) -> str:
    """Return the key of windows: a digest of rows, tokenizer, lengths and the tokenising code."""
    content = [[row[field] for field in task.ROW_FIELDS] for row in rows]
    words = json.loads(tokenizer.backend_tokenizer.to_str())
    # These two are left over from the tokenizer's last call; every call sets them anew.
    for state in ("truncation", "padding"):
        words.pop(state, None)
    modules = ("data/features.py", f"tasks/{MODULES[task.NAME]}.py")
    code = code_hashes.hash_together(modules)
    joined = task is not span and task.joined
    side = tokenizer.truncation_side  # which end of a long text is cut off; not in `words`
    identity = canonical([content, words, side, max_length, stride, joined, code])
    return hashlib.sha256(identity.encode()).hexdigest()[:32]
