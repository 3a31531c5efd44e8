"""Datasets, one file each, which offer `load(config, cache_dir)` and return a `Dataset`; of text, see `text`.

To add one: its file here, a line in `DATASETS` of esper/configs/dataset.py, and conf/dataset/NAME.yaml.
"""
