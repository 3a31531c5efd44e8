"""Planning a training before its compute is spent: train the host longer, start with a larger network, or grow?"""
