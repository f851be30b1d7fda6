"""``kinoscope train`` as its user sees it: the folder, the summary, Lightning's arguments, the guards, the loggers."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

import kinoscope
from kinoscope.config.compose import compose
from kinoscope.errors import KinoscopeError
from kinoscope.runs.build import build_system
from kinoscope.runs.checkpoints import read_checkpoint
from kinoscope.runs.folder import RunFolder
from tests_verbs import AUTOENCODER, GAN, ONE_EPOCH, VIDEO, Command

QUICK = [*AUTOENCODER, *ONE_EPOCH, "callbacks.reconstructions=null", "trainer.limit_test_batches=1"]
