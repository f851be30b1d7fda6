"""Shards: a video data set as a few hundred large files, for storage that is far away or slow with many small ones.

    kinoscope prepare data=ucf101 data.root=<ucf101> shards=<folder>     `writing`
    python -m train … data=shards data.root=<folder or URL>               `reading`

A folder of shards says all of itself:

    shards.json               names of all other files with their sizes and hashes, classes, subsets; written last
    manifest-<hash>.arrow     the videos, see `kinoscope.data.manifest`
    index-<hash>.arrow        in which shard each of them lies, and where
    train-000000-<hash>.tar   videos and labels, in WebDataset's layout, which is a plain tar file

A shard is fetched whole, as large reads suit a network, and a video is decoded in place inside the shard (`store`).
The order of an epoch takes the videos of few shards at a time (`order`).
"""
