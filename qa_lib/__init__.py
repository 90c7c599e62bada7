"""A library for a reproducible study of four reports on question answering and language understanding.

Reading order: params, corpora, sources, data, features, metrics, encoders, then a report's own idea (exbert),
then train, runs, study, and what makes the page of it: report, render.
"""
