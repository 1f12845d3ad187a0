"""A pytest plugin under which the one-file bundle is all there is of the package.

`GROUNDAVIDEO_BUNDLE=examples/community/ground_a_video.py PYTHONPATH=tests python -m pytest -p bundle_as_package` runs
tests that were written for the package on the file that the variable names. Nothing of the package can be imported.
"""

import importlib.util
import os
import sys


# The name is that of its loggers too.
spec = importlib.util.spec_from_file_location("diffusers_groundavideo.pipeline", os.environ["GROUNDAVIDEO_BUNDLE"])
assert spec is not None and spec.loader is not None
bundle = importlib.util.module_from_spec(spec)
# What has no entry here cannot be imported at all, not by the bundle itself either: it is no package.
sys.modules["diffusers_groundavideo"] = bundle
for name in ("attention", "grounding", "inputs", "inversion", "pipeline", "smoothing"):
    sys.modules[f"diffusers_groundavideo.{name}"] = bundle
spec.loader.exec_module(bundle)
