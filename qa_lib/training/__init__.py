import os

# oneDNN keeps the code that it makes for every shape of a matrix. Experts have other shapes in
# every batch, so that its 1,024 places hold most of a gigabyte. It reads this once, as it computes
# for the first time, which is after this room has been imported.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")
