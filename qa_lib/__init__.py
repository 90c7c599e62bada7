"""A library for a reproducible study of four reports on question answering and language
understanding.

Reading order: README.md, then docs/code.md.
"""

import warnings

# of tqdm, in every notebook; our progress is lines of text
warnings.filterwarnings("ignore", message="IProgress not found")
