"""The configs, installed as the package ``kinoscope.configs`` so that they are found wherever kinoscope is."""
