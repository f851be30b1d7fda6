"""Which videos a data set has, and the class, group and subset of each: one module for each layout of lists.

Nothing here opens a video. Class names are read when a config is composed, so these modules import nothing heavy.
"""
