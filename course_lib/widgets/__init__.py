"""Interactive parts of the notebooks; each also has `.text()` and a picture that stays in a saved notebook."""

from .explorer import TokenExplorer
from .lossmask import LossMask
from .wordbyword import WordByWord

__all__ = ["LossMask", "TokenExplorer", "WordByWord"]
