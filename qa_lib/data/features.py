"""Features: the windows of rows, tokenised and labelled by the task, cached by content."""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from qa_lib.settings.files import digest_text, read_seal, write_folder
from qa_lib.settings.spec import canonical
from qa_lib.tasks import span

if TYPE_CHECKING:
    from datasets import Dataset


def load_windows(
    rows: list[dict], tokenizer, max_length: int, stride: int, cache: Path
) -> "Dataset":
    """The windows of `rows`: memory-mapped from `cache`, made there at first use.

    Columns: input_ids, type_ids (T), offsets (2T: character start, end of each context token, else 0),
    row (index into `rows`), start_positions, end_positions.
    """
    from datasets import Dataset, disable_progress_bars, load_from_disk

    disable_progress_bars()
    identity = [
        [r["id"], r["question"], r["context"], r["answers"], r["is_impossible"]] for r in rows
    ]
    words = {
        k: v
        for k, v in json.loads(tokenizer.backend_tokenizer.to_str()).items()
        if k not in ("truncation", "padding")
    }
    code = digest_text(Path(span.__file__))
    key = hashlib.sha256(canonical([identity, words, max_length, stride, code]).encode())
    folder = cache / key.hexdigest()[:32]
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):  # another worker that wants the same waits
        if read_seal(folder) is None:
            if folder.exists():
                print(f"cached features {folder.name} are damaged; made anew", flush=True)
            made = Dataset.from_dict(span.tokenise_rows(rows, tokenizer, max_length, stride))
            write_folder(folder, made.save_to_disk)
        return load_from_disk(folder)
