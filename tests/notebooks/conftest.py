"""The build script as a module, and a small source that it builds once."""

import sys
from types import SimpleNamespace

import pytest

SAMPLE = '''\
# %% [markdown]
# # A sample
# with *two* lines.

# %%
import matplotlib.pyplot as plt
from IPython.display import display
from ipywidgets import IntSlider, Output


def half(x):
    """Half of x."""
    ### BEGIN SOLUTION
    return x / 2
    ### END SOLUTION


# %% tags=["nbval-check-output"]
try:
    print(half(3))
except NotImplementedError as error:
    print(error)

# %%
plt.plot([0, 1], [0, 1])
plt.xlabel("step")
plt.ylabel("loss")
print("The loss rises.")
plt.show()

# %%
import os
import sys

print(os.path.basename(os.getcwd()), object())
print("strict", os.environ["COURSE_STRICT"], sys.executable == os.environ["SAMPLE_PYTHON"])
print("10 %\\r20 %\\rdone")
print("next")
display(IntSlider())
with Output():
    print("into a widget")
'''


@pytest.fixture(scope="session")
def sample(build, tmp_path_factory):
    """A built sample: its source, its folder, and what the build said. Tests do not write into it."""
    folder = tmp_path_factory.mktemp("sample")
    source = folder / "src" / "05_sample.py"
    source.parent.mkdir()
    source.write_text(SAMPLE, encoding="utf-8")
    said = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAMPLE_PYTHON", sys.executable)
        patch.setenv("MPLBACKEND", "agg")
        assert build.build(source, folder, say=said.append)
    return SimpleNamespace(source=source, folder=folder, said=said)
