"""Interactive parts of the notebooks; each also has `.text()` and a picture that stays in a saved notebook."""

from .betaslider import BetaSlider
from .clip import ClipExplorer
from .dpomargin import DPOMargin
from .explorer import TokenExplorer
from .frontier import Frontier
from .gae import GaeSlider
from .group import GroupViewer
from .klmap import KLMap
from .labeller import Labeller
from .lossmask import LossMask
from .oneupdate import OneUpdate
from .replay import Frame, Replay
from .wordbyword import WordByWord

__all__ = ["BetaSlider", "ClipExplorer", "DPOMargin", "Frame", "Frontier", "GaeSlider", "GroupViewer", "KLMap", "Labeller",
           "LossMask", "OneUpdate", "Replay", "TokenExplorer", "WordByWord"]
