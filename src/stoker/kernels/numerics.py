"""The version of the arithmetic."""

from typing import Final

# Raised by every change that alters a bit of keys, values or logits: what was kept on disk before is not used
# then.
NUMERICS: Final = 2
