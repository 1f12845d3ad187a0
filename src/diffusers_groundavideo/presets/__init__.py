"""Edit presets: a whole edit as a small file, without the pixels."""

from .fields import ExpectedClip, HubModel
from .preset import MIGRATIONS, PREVIEW_FILE, SCHEMA_VERSION, EditPreset


__all__ = ["MIGRATIONS", "PREVIEW_FILE", "SCHEMA_VERSION", "EditPreset", "ExpectedClip", "HubModel"]
