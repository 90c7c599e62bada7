"""What our metrics share: modules of `evaluate` that need no network and no home folder."""

import evaluate


class LocalMetric(evaluate.Metric):
    """A metric that keeps everything in memory, since the home folder may be read-only."""

    def _build_data_dir(self) -> str:
        """Return the data folder without making it."""
        return self._data_dir_root
